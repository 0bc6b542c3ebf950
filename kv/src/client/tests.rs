//! The client against nodes that the test plays: what it sends, in which order, and what it says of the answers.

mod calls;
mod outcomes;
mod sessions;
mod stub;
mod transact;
