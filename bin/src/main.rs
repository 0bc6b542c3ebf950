#![deny(clippy::print_stdout, clippy::print_stderr)]

/// Pages of the state file come and go as allocations of 4 KiB, which the system's allocator coalesces and
/// splits again at each apply.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    small_pages();
    quorate::main()
}

/// The allocator asks for pages of 2 MiB, gives back what is free in pieces of 64 KiB, and has each piece that is used
/// again brought back by a page of 2 MiB that the kernel clears: a fifth to a third of a loaded node's time
/// (docs/performance.md).
#[cfg(target_os = "linux")]
fn small_pages() {
    // A kernel that refuses leaves a slower program.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

#[cfg(not(target_os = "linux"))]
fn small_pages() {}
