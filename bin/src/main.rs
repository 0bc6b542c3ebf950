fn main() -> std::process::ExitCode {
    quorate::main()
}
