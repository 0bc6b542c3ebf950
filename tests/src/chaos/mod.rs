//! Load on a cluster of processes while it suffers, and what must hold all the same.
//!
//! [`workload`] writes and reads, and notes what its callers saw; [`nemesis`] kills, pauses and restarts the
//! processes, spoils their disks, and the network between them, which is a [`proxy`]; [`history`] judges.

pub mod history;
pub mod nemesis;
pub mod proxy;
pub mod workload;
