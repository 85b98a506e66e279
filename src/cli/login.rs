//! `qtunnel login`: storing a server and its token in the user's configuration.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use qtunnel::{Pin, ServerAddr};

use qtunnel::proto::Secret;

use super::settings::{self, Settings};
use super::{Failure, prompt};

#[derive(Args)]
pub struct LoginArgs {
    /// The edge: HOST or HOST:PORT
    #[arg(value_name = "HOST[:PORT]")]
    server: ServerAddr,
    /// The token that `qtunnel serve` printed
    #[arg(
        long,
        env = "QTUNNEL_TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file"
    )]
    token: Option<String>,
    /// A file with the token; it is copied
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The pin that `qtunnel serve` printed
    #[arg(long, value_name = "sha256/…", conflicts_with = "ca")]
    pin: Option<Pin>,
    /// The CA that signed the edge's certificate (PEM)
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// Prompt for the token on a terminal, without showing it, or read it from a pipe.
async fn read_token() -> Result<String, Failure> {
    let line = match std::io::stdin().is_terminal() {
        true => prompt::secret("token (it is not shown): ").await,
        false => prompt::line(),
    };
    match line.as_deref().map(settings::trim_secret) {
        Err(_) | Ok("") => Err(Failure::usage("which token? Pass --token or --token-file")),
        Ok(token) => Ok(token.to_owned()),
    }
}

/// Store the server, the token and the trust.
pub async fn run(args: LoginArgs) -> Result<(), Failure> {
    let token = match (args.token, &args.token_file) {
        (Some(token), _) => settings::trim_secret(&token).to_owned(),
        (None, Some(file)) => settings::read_secret(file)?,
        (None, None) => read_token().await?,
    };
    let ca = args
        .ca
        .map(|path| {
            std::path::absolute(&path)
                .ok()
                .filter(|path| path.is_file())
                .ok_or_else(|| Failure::usage(format!("there is no CA file {}", path.display())))
        })
        .transpose()?;
    let settings = Settings {
        server: Some(args.server.to_string()),
        token: Some(Secret::new(token)),
        pin: args.pin.map(|pin| pin.to_string()),
        ca,
        ..Settings::default()
    };
    let path = settings.save()?;
    println!(
        "remembered {} in {}; now: qtunnel connect 3000",
        args.server,
        path.display()
    );
    Ok(())
}
