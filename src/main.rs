//! The `qtunnel` command: parse, start tracing, run, and report what went wrong with an exit code.

mod cli;

use std::error::Error;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: qtunnel::Allocator = qtunnel::Allocator;

fn main() -> ExitCode {
    let command = cli::parse();
    cli::start_tracing();
    let runtime = match qtunnel::runtime() {
        Ok(runtime) => runtime,
        Err(err) => return report(&err, 1),
    };
    match runtime.block_on(cli::run(command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(failure.error.as_ref(), failure.code),
    }
}

fn report(err: &(dyn Error + 'static), code: u8) -> ExitCode {
    eprintln!("qtunnel: {}", qtunnel::chain(err));
    ExitCode::from(code)
}
