//! Load on a cluster of processes while it suffers, and what must hold all the same.
//!
//! [`workload`] is the one of the simulator, with real clients; [`nemesis`] kills, pauses and restarts the
//! processes, spoils their disks, and the network between them, which is a [`proxy`]; [`history`] judges, by the same
//! rule book; [`run`] is all of it in order.

pub mod history;
pub mod nemesis;
pub mod proxy;
pub mod run;
pub mod workload;
