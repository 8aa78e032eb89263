//! The control command: see `tintype --help`.

fn main() -> std::process::ExitCode {
    tintype::app::tintype()
}
