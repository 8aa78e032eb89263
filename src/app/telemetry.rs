//! Logging: to standard error, warnings by default.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Begins to log. `$TINTYPE_LOG` overrides the flags, in the form `info,tintype::repo=debug`.
pub fn begin(verbose: u8, is_quiet: bool) {
    let default = match (is_quiet, verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "warn,tintype=info",
        (false, _) => "info,tintype=debug",
    };
    let filter = EnvFilter::try_from_env("TINTYPE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    // A second beginning (tests in one process) keeps the first.
    let _begun_already = subscriber.try_init();
}
