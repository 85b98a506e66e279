//! The command line: raw flags in, finished configurations out. Nobody else knows clap.

mod check;
mod connect;
mod demo;
mod edge_flags;
mod habits;
mod log;
mod login;
mod next_step;
mod output;
mod prompt;
mod serve;
#[cfg(unix)]
mod service;
mod settings;
mod signal;

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
    /// Find out what is in the way to the edge, and over what agents reach it
    Check(check::CheckArgs),
    /// Remember a server and its token, so that `qtunnel connect 3000` is enough
    Login(login::LoginArgs),
    /// Run edge, sample upstream and agent in one process, and print a URL to open
    Demo(demo::DemoArgs),
}

/// Read the command line. Wrong usage ends the program with code 2, `--help` with 0.
pub fn parse() -> Cli {
    let mut typed = std::env::args_os();
    let program = typed.next().unwrap_or_else(|| "qtunnel".into());
    match habits::translate(typed.collect()) {
        Ok(words) => {
            let words = std::iter::once(program).chain(words);
            Cli::try_parse_from(words).unwrap_or_else(|err| match unknown_flag(&err) {
                Some(instead) => refuse(&instead),
                None => err.exit(),
            })
        }
        Err(instead) => refuse(&instead),
    }
}

fn refuse(instead: &str) -> ! {
    eprintln!("qtunnel: {}", qtunnel::escape(instead));
    std::process::exit(2)
}

/// Say in one line that there is no such flag. clap would advise to pass it as a value.
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

/// Log to stderr, as `RUST_LOG` says: levels, of all or of a module (`warn,qtunnel::carrier=debug`). Filters by
/// span or field are not understood: the regular expressions that they need are 3 % of a program that is in memory
/// on every laptop.
pub fn start_tracing() {
    let wanted = std::env::var("RUST_LOG")
        .ok()
        .filter(|wanted| !wanted.is_empty());
    let parsed = wanted.as_deref().map(str::parse::<Targets>).transpose();
    let (targets, problem) = match parsed {
        Ok(targets) => (targets, None),
        Err(err) => (None, Some(err)),
    };
    let as_usual = || {
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
        .with(targets.unwrap_or_else(as_usual))
        .init();
    if let Some(err) = problem {
        warn!(%err, "RUST_LOG is not understood, logging as usual; write it like warn,qtunnel=debug");
    }
}

/// Do what the command line says.
///
/// # Errors
/// [`Failure`] has the exit code.
pub async fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Serve(args) => serve::run(args).await,
        Command::Connect(args) => connect::run(args).await,
        Command::Check(args) => check::run(args).await,
        Command::Login(args) => login::run(args).await,
        Command::Demo(args) => demo::run(args).await,
    }
}

/// Tell whether colours can be written there, and are wanted.
fn shows_colors(output: &impl IsTerminal) -> bool {
    std::env::var_os("NO_COLOR").is_none() && output.is_terminal() && understands_colors()
}

/// A Windows console understands them once it is asked to.
#[cfg(windows)]
fn understands_colors() -> bool {
    anstyle_query::windows::enable_ansi_colors().unwrap_or(false)
}

#[cfg(not(windows))]
fn understands_colors() -> bool {
    true
}

/// Read a flag's duration.
fn duration(text: &str) -> Result<std::time::Duration, &'static str> {
    humantime::parse_duration(text).map_err(|_| "not a duration: write 500ms, 30s or 2m")
}

/// Why the program ends, and with which code.
pub struct Failure {
    /// 1 failed while running, 2 wrong usage or configuration, 3 token refused, 4 name taken,
    /// 5 server not reachable.
    pub code: u8,
    /// What is shown.
    pub error: Box<dyn Error>,
}

impl Failure {
    /// Something failed while running.
    fn running(error: impl Into<Box<dyn Error>>) -> Self {
        Self {
            code: 1,
            error: error.into(),
        }
    }

    /// Flags, environment or configuration files are wrong.
    fn usage(error: impl Into<Box<dyn Error>>) -> Self {
        Self {
            code: 2,
            error: error.into(),
        }
    }
}
