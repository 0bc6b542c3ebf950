//! Publishes the round trips to the nodes that the transport has connections to.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use metrics::gauge;

use super::shared::Shared;

/// How often round trips are published.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// Publishes the round trips until the transport closes.
pub(super) async fn report(shared: Arc<Shared>) {
    let mut known = BTreeSet::new();
    loop {
        tokio::select! {
            () = shared.closing.cancelled() => return,
            () = tokio::time::sleep(REPORT_EVERY) => {}
        }
        known.extend(shared.links.nodes());
        for node in &known {
            if let Some(round_trip) = shared.links.round_trip(*node) {
                gauge!("quorate_transport_round_trip_seconds", "node" => node.to_string())
                    .set(round_trip.as_secs_f64());
            }
        }
    }
}
