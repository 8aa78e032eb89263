//! The programs: configuration, command lines, wiring, output.

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use control_args::{CommonArgs, ControlArgs};
use failure::{Exit, Failure};
use output::Output;
use wiring::Session;

pub mod config;
pub mod control;
pub mod control_args;
pub mod daemon;
pub mod disk_cache;
pub mod failure;
pub mod local_node;
pub mod mount;
pub mod output;
pub mod telemetry;
pub mod wiring;

/// The whole of `tintype`.
pub fn tintype() -> ExitCode {
    let args: ControlArgs = match parse() {
        Ok(args) => args,
        Err(code) => return code,
    };
    run(args.common.clone(), async |session| control::run(session, args.verb).await)
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
        let text = error.to_string();
        let what = text.split("\n\n").next().unwrap_or_default();
        let failure = Failure::usage(what.strip_prefix("error: ").unwrap_or(what)).hint("see `tintype --help`");
        output::end(Output { is_json: true, is_quiet: false }, Err(failure))
    })
}

/// Starts logging and the runtime, runs `work`, says how it ended.
fn run(common: CommonArgs, work: impl AsyncFnOnce(&Session) -> Result<Exit, Failure>) -> ExitCode {
    let output = Output { is_json: common.json, is_quiet: common.quiet };
    telemetry::begin(common.verbose, common.quiet);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output::end(output, Err(Failure::new("system", format!("the runtime cannot be started: {error}")))),
    };
    let result = runtime.block_on(async {
        let session = Session::begin(common)?;
        work(&session).await
    });
    // What still hangs in a system call (a dead disk, a dead store) is not waited for: the answer is known.
    runtime.shutdown_background();
    output::end(output, result)
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
