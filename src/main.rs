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
    let ran = runtime.block_on(cli::run(command));
    // A thread that waits for a dead name server or file server is not waited for.
    runtime.shutdown_background();
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(failure.error.as_ref(), failure.code),
    }
}

fn report(err: &(dyn Error + 'static), code: u8) -> ExitCode {
    // Whatever a peer has added to it stays on its line.
    let text = qtunnel::chain(err);
    let lines: Vec<_> = text.lines().map(qtunnel::escape).collect();
    eprintln!("qtunnel: {}", lines.join("\n"));
    ExitCode::from(code)
}

#[global_allocator]
static ALLOCATOR: qtunnel::Allocator = qtunnel::Allocator;
