//! The command line: raw flags in, complete configurations out. No other module uses clap.

mod aliases;
mod check;
mod connect;
mod demo;
mod edge_flags;
mod log;
mod login;
mod output;
mod prompt;
mod serve;
#[cfg(unix)]
mod service;
mod settings;
mod signal;
mod suggested_command;

use std::error::Error;
use std::io::IsTerminal;

use clap::error::{ContextKind, ErrorKind};
use clap::{Parser, Subcommand};
use tracing::warn;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Publish a local web server under a public name, through a server of your own.
#[derive(Parser)]
#[command(name = "qtunnel", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the public side: accept agents and visitors
    Serve(serve::ServeArgs),
    /// Publish a local port, server or directory
    Connect(connect::ConnectArgs),
    /// Test every step of the connection to the edge, and show over which carrier agents reach it
    Check(check::CheckArgs),
    /// Remember a server and its token, so that `qtunnel connect 3000` is enough
    Login(login::LoginArgs),
    /// Run an edge, a sample upstream and an agent in one process, and print a URL to open
    Demo(demo::DemoArgs),
}

/// Parse the command line. Wrong usage exits with code 2, `--help` with 0.
pub fn parse() -> Cli {
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_else(|| "qtunnel".into());
    match aliases::translate(args.collect()) {
        Ok(words) => {
            let words = std::iter::once(program).chain(words);
            Cli::try_parse_from(words).unwrap_or_else(|err| match unknown_flag(&err) {
                Some(advice) => exit_with_advice(&advice),
                None => err.exit(),
            })
        }
        Err(advice) => exit_with_advice(&advice),
    }
}

/// Print advice on how to call the program, and end it with the exit code of wrong usage.
fn exit_with_advice(advice: &str) -> ! {
    eprintln!("qtunnel: {}", qtunnel::escape(advice));
    std::process::exit(2)
}

/// Say in one line that there is no such flag: clap would advise to pass it as a value.
fn unknown_flag(err: &clap::Error) -> Option<String> {
    if err.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let flag = err.get(ContextKind::InvalidArg)?;
    Some(match err.get(ContextKind::SuggestedArg) {
        Some(similar) => format!("there is no flag {flag}; there is {similar}"),
        None => format!("{flag} is not understood here; --help shows the flags of each command"),
    })
}

/// Start logging to stderr as configured by `RUST_LOG`: a level for everything or for a module
/// (`warn,qtunnel::carrier=debug`). Filters by span or field are not supported: the regular expressions for them would
/// be 3 % of the program, in the memory of every laptop.
pub fn start_tracing() {
    let filter = std::env::var("RUST_LOG")
        .ok()
        .filter(|filter| !filter.is_empty());
    let parsed = filter.as_deref().map(str::parse::<Targets>).transpose();
    let (targets, problem) = match parsed {
        Ok(targets) => (targets, None),
        Err(err) => (None, Some(err)),
    };
    let default_targets = || {
        Targets::new()
            .with_default(LevelFilter::WARN)
            .with_target("qtunnel", LevelFilter::INFO)
    };
    let lines = tracing_subscriber::fmt::layer()
        .fmt_fields(log::SafeFields)
        .with_writer(std::io::stderr)
        .with_ansi(shows_colors(&std::io::stderr()))
        .with_target(false);
    tracing_subscriber::registry()
        .with(lines)
        .with(targets.unwrap_or_else(default_targets))
        .init();
    if let Some(err) = problem {
        warn!(%err, "RUST_LOG is not understood, using the default; write it like warn,qtunnel=debug");
    }
}

/// Run the command.
///
/// # Errors
/// [`Failure`], with the exit code.
pub async fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Serve(args) => serve::run(args).await,
        Command::Connect(args) => connect::run(args).await,
        Command::Check(args) => check::run(args).await,
        Command::Login(args) => login::run(args).await,
        Command::Demo(args) => demo::run(args).await,
    }
}

/// Report whether an output is a terminal with colours, and `NO_COLOR` is not set.
fn shows_colors(output: &impl IsTerminal) -> bool {
    std::env::var_os("NO_COLOR").is_none() && output.is_terminal() && understands_colors()
}

/// Enable ANSI colours in a Windows console. Return whether that succeeded.
#[cfg(windows)]
fn understands_colors() -> bool {
    anstyle_query::windows::enable_ansi_colors().unwrap_or(false)
}

#[cfg(not(windows))]
fn understands_colors() -> bool {
    true
}

/// Parse the duration of a flag.
fn duration(text: &str) -> Result<std::time::Duration, &'static str> {
    humantime::parse_duration(text).map_err(|_| "not a duration: write 500ms, 30s or 2m")
}

/// An error that ends the program, with the exit code.
pub struct Failure {
    /// The exit code: 1 failed while running, 2 wrong usage or configuration, 3 token refused, 4 name taken,
    /// 5 server not reachable.
    pub code: u8,
    /// The error that is printed.
    pub error: Box<dyn Error>,
}

impl Failure {
    /// Create a failure at run time (code 1).
    fn running(error: impl Into<Box<dyn Error>>) -> Self {
        Self {
            code: 1,
            error: error.into(),
        }
    }

    /// Create a failure because flags, environment or configuration files are wrong (code 2).
    fn usage(error: impl Into<Box<dyn Error>>) -> Self {
        Self {
            code: 2,
            error: error.into(),
        }
    }
}
