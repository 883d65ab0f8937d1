//! The `va` binary.

fn main() -> std::process::ExitCode {
    va_serving::cli::main()
}
