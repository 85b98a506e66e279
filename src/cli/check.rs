//! `qtunnel check`: the report on the connection to the edge, for people or as JSON.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use qtunnel::{AgentConfig, ConnectError, Report, StateDir, Verdict, escape};
use serde_json::json;

use super::edge_flags::EdgeFlags;
use super::output::{path_summary, transport_name};
use super::settings::{self, Settings};
use super::{Failure, connect};

#[derive(Args)]
pub struct CheckArgs {
    #[command(flatten)]
    edge: EdgeFlags,
    /// Print one JSON object per line, for each step
    #[arg(long)]
    json: bool,
    /// Keep this agent's identity here
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

/// Test the connection to the edge. The exit code is 0 if an agent could connect, else that of
/// `connect --exit-on-failure`.
pub async fn run(args: CheckArgs) -> Result<(), Failure> {
    let settings = Settings::load()?;
    let state = settings::state_dir(args.state_dir)?;
    let state = StateDir::open(state).map_err(Failure::usage)?;
    let config = args.edge.configure(&settings, &state)?;
    let report = qtunnel::check(&config)
        .await
        .map_err(|err| failure(err, &config))?;
    let shown = match args.json {
        true => machine(&report, &config),
        false => human(&report, &config),
    };
    // Fails if the reader of a pipe has gone, which does not matter.
    let _ = std::io::stdout().write_all(shown.as_bytes());
    match report.session {
        Ok(_) => Ok(()),
        Err(err) => Err(failure(err, &config)),
    }
}

/// Convert the error of a session, with the exit code of `connect`.
fn failure(err: ConnectError, config: &AgentConfig) -> Failure {
    let has_token = !config.token.reveal().is_empty();
    connect::failure(err.into(), &config.server, has_token)
}

/// Format the report for people.
fn human(report: &Report, config: &AgentConfig) -> String {
    let color = super::shows_colors(&std::io::stdout());
    let width = report
        .findings
        .iter()
        .map(|finding| finding.title.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = format!("connection to {}\n", config.server);
    for finding in &report.findings {
        let (paint, end) = match (color, finding.verdict) {
            (false, _) => ("", ""),
            (true, Verdict::Pass) => ("\x1b[32m", "\x1b[0m"),
            (true, Verdict::Fail) => ("\x1b[31m", "\x1b[0m"),
            (true, Verdict::Skip) => ("\x1b[2m", "\x1b[0m"),
        };
        text += &format!(
            "  {:width$}  {paint}{}{end}  {}\n",
            finding.title,
            finding.verdict,
            escape(&finding.detail)
        );
        if let Some(advice) = &finding.advice {
            text += &format!("  {:width$}        → {}\n", "", escape(advice));
        }
    }
    if let Ok(transport) = &report.session {
        text += &format!(
            "agents connect over {} ({})\n",
            transport_name(transport.carrier),
            path_summary(transport)
        );
    }
    text
}

/// Format the report as JSON, one object per line.
fn machine(report: &Report, config: &AgentConfig) -> String {
    let mut lines: Vec<_> = report
        .findings
        .iter()
        .map(|finding| {
            json!({
                "event": "check",
                "check": finding.part,
                "verdict": finding.verdict.to_string().to_lowercase(),
                "detail": escape(&finding.detail),
                "advice": finding.advice.as_deref().map(escape),
            })
        })
        .collect();
    let session = report.session.as_ref().ok();
    lines.push(json!({
        "event": "checked",
        "server": config.server.to_string(),
        "code": report.session.as_ref().err().map_or(0, connect::code),
        "transport": session.map(|transport| transport_name(transport.carrier)),
        "rtt_ms": session.map(|transport| transport.rtt.as_secs_f64() * 1e3),
        "sent_packets": session.map(|transport| transport.sent_packets),
        "lost_packets": session.map(|transport| transport.lost_packets),
        "mtu": session.map(|transport| transport.mtu),
    }));
    lines.iter().map(|line| format!("{line}\n")).collect()
}
