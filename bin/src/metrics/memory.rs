//! What the process takes of the machine's memory, beside what the node was told that it may take.

use metrics::gauge;
use quorate_kv::node::{MemoryParts, Settings};

/// Tells what the node may take, once.
pub(crate) fn tell(settings: &Settings, parts: &MemoryParts) {
    gauge!("quorate_memory_bytes_max").set(settings.memory_bytes as f64);
    for (part, bytes) in parts.named() {
        gauge!("quorate_memory_part_bytes_max", "part" => part).set(bytes as f64);
    }
}

/// Looks at what the process takes.
pub(super) fn look() {
    if let Some(bytes) = resident() {
        gauge!("process_resident_memory_bytes").set(bytes as f64);
    }
}

#[cfg(target_os = "linux")]
fn resident() -> Option<u64> {
    // proc(5): in pages; the second number is what is resident.
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(not(target_os = "linux"))]
fn resident() -> Option<u64> {
    None
}
