//! `tombolo`: the one binary. Everything is in the library, so that tests can run it too.

fn main() -> std::process::ExitCode {
    cli::run(std::env::args_os())
}
