//! The `qtunnel` command: parse, start tracing, run, and report what went wrong with an exit code.

mod cli;

use std::error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    let command = cli::parse();
    cli::start_tracing();
    let runtime = match qtunnel::runtime() {
        Ok(runtime) => runtime,
        Err(err) => return report(&err, 1),
    };
    let result = runtime.block_on(cli::run(command));
    // Does not wait for blocking threads: one may hang on a dead name server or file server.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(failure.error.as_ref(), failure.code),
    }
}

/// Print an error with its causes, and return the exit code.
fn report(err: &(dyn Error + 'static), code: u8) -> ExitCode {
    // Escaped, so that text from a peer cannot start a line of its own.
    let text = qtunnel::chain(err);
    let lines: Vec<_> = text.lines().map(qtunnel::escape).collect();
    eprintln!("qtunnel: {}", lines.join("\n"));
    ExitCode::from(code)
}

#[global_allocator]
static ALLOCATOR: qtunnel::Allocator = qtunnel::Allocator;
