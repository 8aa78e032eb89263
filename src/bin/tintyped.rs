//! The daemon: see `tintyped --help`.

fn main() -> std::process::ExitCode {
    tintype::app::tintyped()
}
