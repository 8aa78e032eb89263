//! The programs: configuration, command lines, wiring, output.

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use control_args::{CommonArgs, ControlArgs};
use failure::{Exit, Failure};
use output::Output;
use wiring::Session;

pub mod agent;
pub mod clone;
pub mod config;
pub mod control;
pub mod control_args;
pub mod daemon;
pub mod disk_cache;
pub mod export;
pub mod failure;
pub mod foreign_config;
mod guard;
mod linked;
pub mod local_node;
pub mod local_restore;
pub mod mount;
mod mount_memory;
mod mountpoint;
pub mod notify;
pub mod output;
mod parents;
pub mod renewal;
pub mod restore_on_start;
mod ring;
pub mod served;
pub mod snapshot;
pub mod status;
pub mod telemetry;
pub mod wiring;

/// Exit codes of mount(8) and its helpers: called wrongly; not mounted.
const MOUNT_USAGE: u8 = 1;
const MOUNT_FAILED: u8 = 32;

/// The whole of `tintype`.
pub fn tintype() -> ExitCode {
    if std::env::args_os().next().is_some_and(|name| control::helper::is_meant(&name)) {
        return mount_helper();
    }
    let args: ControlArgs = match parse() {
        Ok(args) => args,
        Err(code) => return code,
    };
    if let control_args::Verb::Guard(guarded) = &args.verb {
        // Who starts the store may not be allowed to read our configuration.
        let output = Output { is_json: args.common.json, is_quiet: args.common.quiet };
        return output::end(output, guard::run(output, guarded));
    }
    run(args.common.clone(), async |session| control::run(session, args.verb).await)
}

/// The same, called by mount(8), with the exit codes that it knows.
fn mount_helper() -> ExitCode {
    let output = Output { is_json: false, is_quiet: false };
    let asked = match control::helper::translate(std::env::args_os().skip(1)) {
        Ok(asked) => asked,
        Err(failure) => {
            output.failure(&failure);
            return ExitCode::from(MOUNT_USAGE);
        }
    };
    asked.notes.iter().for_each(|note| output.note(note));
    let Some(command) = asked.command else { return ExitCode::SUCCESS };
    let args = match ControlArgs::try_parse_from(command) {
        Ok(args) => args,
        Err(error) => {
            output.failure(&misunderstood(&error));
            return ExitCode::from(MOUNT_USAGE);
        }
    };
    let (output, result) = carry_out(args.common.clone(), async |session| control::run(session, args.verb).await);
    match result {
        Ok(_) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(if failure.exit == Exit::Usage { MOUNT_USAGE } else { MOUNT_FAILED })
        }
    }
}

/// The whole of `tintyped`.
pub fn tintyped() -> ExitCode {
    let args: daemon::DaemonArgs = match parse() {
        Ok(args) => args,
        Err(code) => return code,
    };
    run(args.common.clone(), async |session| daemon::run(session, args).await)
}

/// The command line; a wrong one is said in the caller's form, because a script that asked for JSON waits for an object.
fn parse<Args: Parser>() -> Result<Args, ExitCode> {
    Args::try_parse().map_err(|error| {
        if !error.use_stderr() || !std::env::args_os().any(|argument| argument == "--json") {
            error.exit();
        }
        output::end(Output { is_json: true, is_quiet: false }, Err(misunderstood(&error)))
    })
}

fn misunderstood(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let what = text.split("\n\n").next().unwrap_or_default();
    Failure::usage(what.strip_prefix("error: ").unwrap_or(what)).hint("see `tintype --help`")
}

/// Starts logging and the runtime, runs `work`, says how it ended.
fn run(common: CommonArgs, work: impl AsyncFnOnce(&Session) -> Result<Exit, Failure>) -> ExitCode {
    let (output, result) = carry_out(common, work);
    output::end(output, result)
}

fn carry_out(common: CommonArgs, work: impl AsyncFnOnce(&Session) -> Result<Exit, Failure>) -> (Output, Result<Exit, Failure>) {
    let output = Output { is_json: common.json, is_quiet: common.quiet };
    telemetry::begin(common.verbose, common.quiet);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return (output, Err(Failure::new("system", format!("the runtime cannot be started: {error}")))),
    };
    let result = runtime.block_on(async {
        let session = Session::begin(common)?;
        telemetry::renew(telemetry::parse(session.config.log.as_deref())?);
        work(&session).await
    });
    // What still hangs in a system call (a dead disk, a dead store) is not waited for: the answer is known.
    runtime.shutdown_background();
    (output, result)
}

/// Prints completions for a shell.
pub fn completions(output: Output, shell: clap_complete::Shell) -> Result<Exit, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut ControlArgs::command(), "tintype", &mut text);
    print(output, &text)
}

/// Prints the manual page of all verbs.
pub fn man(output: Output) -> Result<Exit, Failure> {
    let command = ControlArgs::command();
    let mut text = Vec::new();
    let wrong = |error: std::io::Error| Failure::new("internal", error.to_string());
    clap_mangen::Man::new(command.clone()).render(&mut text).map_err(wrong)?;
    for verb in command.get_subcommands() {
        let page = clap_mangen::Man::new(verb.clone());
        page.render_synopsis_section(&mut text).map_err(wrong)?;
        page.render_description_section(&mut text).map_err(wrong)?;
        page.render_options_section(&mut text).map_err(wrong)?;
    }
    print(output, &text)
}

fn print(output: Output, text: &[u8]) -> Result<Exit, Failure> {
    use std::io::Write;
    if output.is_json {
        output.result("", &serde_json::json!({"text": String::from_utf8_lossy(text)}));
        return Ok(Exit::Done);
    }
    let mut out = std::io::stdout().lock();
    out.write_all(text)
        .and_then(|()| out.flush())
        .map_err(|error| Failure::new("output", format!("standard output: {error}")))?;
    Ok(Exit::Done)
}
