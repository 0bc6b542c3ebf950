//! Calls that must not compile: what the types keep apart.
//!
//! A broker's id is a number, and text is none.
//!
//! ```compile_fail,E0277
//! quorate_meta::RegisterBroker::new("1", "a:9092");
//! ```
//!
//! An endpoint is text or an address, and a port alone is none.
//!
//! ```compile_fail,E0277
//! quorate_meta::RegisterBroker::new(1, 9092);
//! ```
//!
//! A name that was not checked is no name: what came of the check is looked at first.
//!
//! ```compile_fail,E0308
//! async fn create<S: quorate_meta::Store>(meta: quorate_meta::MetaClient<S>) {
//!     let _ = meta.create_topic(quorate_meta::CreateTopic::new("orders", 6, 3)).await;
//! }
//! ```
//!
//! Replicas are numbers or ids of brokers, not names.
//!
//! ```compile_fail,E0277
//! quorate_meta::CreateTopic::manual("orders", [["a", "b"]]);
//! ```
//!
//! An index of a partition is no id of a broker, nor the other way round.
//!
//! ```compile_fail,E0277
//! fn lead(seen: &quorate_meta::Partition) {
//!     quorate_meta::LeaderUpdate::new(seen, seen.index);
//! }
//! ```
//!
//! An epoch is one that was seen. Nobody makes one up from a number.
//!
//! ```compile_fail,E0308
//! fn shrink(seen: &quorate_meta::Partition) {
//!     quorate_meta::IsrUpdate::new(seen, [1]).asked_by(1, 7);
//! }
//! ```
//!
//! The two epochs of a partition are not exchanged.
//!
//! ```compile_fail,E0308
//! fn seen(partition: &quorate_meta::Partition) -> quorate_meta::Epochs {
//!     quorate_meta::Epochs { leader: partition.partition_epoch, partition: partition.leader_epoch }
//! }
//! ```
