/// Pages of the state file come and go as allocations of 4 KiB, which the system's allocator coalesces and
/// splits again at each apply.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    quorate::main()
}
