//! Logging: to standard error, warnings by default.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;

use super::failure::Failure;

/// Changes what is logged; there once logging began.
static FILTER: OnceLock<Filter> = OnceLock::new();

struct Filter {
    change: Box<dyn Fn(EnvFilter) + Send + Sync>,
    /// What holds where the configuration says nothing.
    default: &'static str,
    /// The command line or the environment has said it, whatever the configuration says.
    is_said: bool,
}

/// Begins to log. `$TINTYPE_LOG` overrides the flags, in the form `info,tintype::repo=debug`, and both the configuration.
pub fn begin(verbose: u8, is_quiet: bool) {
    let default = match (is_quiet, verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "warn,tintype=info",
        (false, _) => "info,tintype=debug",
    };
    let from_environment = EnvFilter::try_from_env("TINTYPE_LOG");
    let is_said = is_quiet || verbose > 0 || from_environment.is_ok();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(from_environment.unwrap_or_else(|_| EnvFilter::new(default)))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_filter_reloading();
    let handle = subscriber.reload_handle();
    // A second beginning (tests in one process) keeps the first.
    if subscriber.try_init().is_ok() {
        let change = Box::new(move |filter| drop(handle.reload(filter)));
        let _is_first = FILTER.set(Filter { change, default, is_said });
    }
}

/// What the configuration says is to be logged.
pub fn parse(log: Option<&str>) -> Result<Option<EnvFilter>, Failure> {
    log.map(EnvFilter::try_new).transpose().map_err(|error| {
        Failure::usage(format!("log: {error}")).hint("say error, warn, info or debug, or a list like info,tintype::repo=debug")
    })
}

/// The same, from now on.
pub fn renew(wanted: Option<EnvFilter>) {
    if let Some(filter) = FILTER.get().filter(|filter| !filter.is_said) {
        (filter.change)(wanted.unwrap_or_else(|| EnvFilter::new(filter.default)));
    }
}
