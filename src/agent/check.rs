//! Connectivity diagnostics (`qtunnel check`): each step towards the edge is tested separately, then a session
//! is opened over the whole path.

use std::error::Error;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use tokio::join;
use tokio::time::Instant;

use super::config::AgentConfig;
use super::event::LinkStats;
use super::session::connect_error::ConnectError;
use super::session::dial::dial_config;
use super::session::open::{Session, SessionIdentity};
use crate::carrier::{DialConfig, PathMemory, Transport};
use crate::error_chain::chain;
use crate::proto::{AgentId, ClaimMode, Refusal};

/// The result of [`check`].
#[derive(Debug)]
pub struct Report {
    /// One result for each step, in the order in which the steps depend on each other.
    pub findings: Vec<Finding>,
    /// The carrier that a session would use, or the error that prevents a session.
    pub session: Result<LinkStats, ConnectError>,
}

/// The result of one step.
#[derive(Debug)]
pub struct Finding {
    /// The step, as an identifier for programs: `dns`, `tcp`, `proxy`, `udp`, `udp-full-size`, `websocket`,
    /// `certificate` or `token`.
    pub part: &'static str,
    /// The step, for people: `UDP 443`.
    pub title: String,
    /// The outcome.
    pub verdict: Verdict,
    /// The observation behind the verdict.
    pub detail: String,
    /// The recommended remedy, if there is a problem.
    pub advice: Option<String>,
}

/// The outcome of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The step works.
    Pass,
    /// The step does not work. Agents may still connect over another carrier.
    Fail,
    /// The step is not needed, or could not be tested.
    Skip,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pass => "PASS",
            Self::Fail => "FAIL",
            Self::Skip => "SKIP",
        })
    }
}

/// Test everything that an agent with this configuration needs. Nothing is published, and agents with
/// the same name are not disturbed.
///
/// # Errors
/// [`ConnectError`] if the configuration itself cannot be used.
pub async fn check(config: &AgentConfig) -> Result<Report, ConnectError> {
    let (dial, _) = dial_config(config, &PathMemory::default())?;
    let over_udp = async {
        let (dns, edges) = resolve(&dial).await;
        let (udp, full_size) = probe_udp(&dial, config.transport, &edges).await;
        (dns, udp, full_size)
    };
    let over_tcp = async { join!(test_tcp(&dial), test_proxy(&dial)) };
    let websocket = test_websocket(&dial, config.transport);
    let ((dns, udp, full_size), (tcp, proxy), websocket) = join!(over_udp, over_tcp, websocket);
    let session = try_session(config).await;
    let (certificate, token) = authentication_findings(config, &session);
    Ok(Report {
        findings: vec![
            dns,
            tcp,
            proxy,
            udp,
            full_size,
            websocket,
            certificate,
            token,
        ],
        session,
    })
}

/// Test name resolution, and return the addresses.
async fn resolve(dial: &DialConfig) -> (Finding, Vec<SocketAddr>) {
    let finding = Finding::new("dns", "DNS");
    let edges = match dial.look_up().await {
        Ok(edges) => edges,
        Err(err) => {
            let advice = "check the name that --server gives, and the DNS of this machine";
            return (finding.failed_with(&err, advice), Vec::new());
        }
    };
    if dial.host.parse::<IpAddr>().is_ok() {
        return (
            finding.skipped(format!("{} is an address", dial.host)),
            edges,
        );
    }
    let addresses: Vec<_> = edges.iter().map(|edge| edge.ip().to_string()).collect();
    let detail = format!("{} is {}", dial.host, addresses.join(", "));
    (finding.passed(detail), edges)
}

/// Test UDP: first with packets of the smallest size that QUIC needs, then with full Ethernet packets.
async fn probe_udp(
    dial: &DialConfig,
    transport: Transport,
    edges: &[SocketAddr],
) -> (Finding, Finding) {
    let udp = Finding::new("udp", format!("UDP {}", dial.port));
    let full_size = Finding::new("udp-full-size", "UDP, full size");
    if transport == Transport::Websocket {
        let why = "not used with --transport websocket";
        return (udp.skipped(why), full_size.skipped(why));
    }
    if edges.is_empty() {
        let why = "no address to ask";
        return (udp.skipped(why), full_size.skipped(why));
    }
    let (small, large) = (DialConfig::MIN_PROBE_SIZE, DialConfig::MAX_PROBE_SIZE);
    let started = Instant::now();
    let answered = tokio::select! {
        answered = DialConfig::probe_udp(edges, small) => answered,
        () = DialConfig::refused_by_all(edges) => {
            let advice = "start `qtunnel serve` there, or check its --quic; until then agents use the WebSocket";
            return (
                udp.failed("nothing listens there (connection refused)", advice),
                full_size.skipped("nothing gets through"),
            );
        }
    };
    let edge = match answered {
        Ok(Some(edge)) => edge,
        Ok(None) => {
            let detail = format!(
                "no answer within {} s",
                DialConfig::UDP_ANSWER_TIMEOUT.as_secs()
            );
            let advice = format!(
                "open UDP port {} at the edge and in every firewall on the path{}",
                dial.port,
                match transport {
                    Transport::Auto => "; until then agents use the WebSocket",
                    _ => ", or allow the WebSocket with --transport auto",
                }
            );
            return (
                udp.failed(detail, advice),
                full_size.skipped("UDP does not pass"),
            );
        }
        Err(err) => {
            let advice = "this machine cannot open a UDP socket: check its limits";
            return (
                udp.failed_with(&err, advice),
                full_size.skipped("UDP does not pass"),
            );
        }
    };
    let udp = udp.passed(format!("{edge} answers in {}", format_elapsed(started)));
    let full_size = match DialConfig::probe_udp(&[edge], large).await {
        Ok(Some(_)) => full_size.passed(format!("{large} bytes pass")),
        _ => full_size.failed(
            format!("{small} bytes pass, {large} do not"),
            "nothing needs to be done, agents send smaller packets; a VPN on the path may have a small MTU",
        ),
    };
    (udp, full_size)
}

/// Test a TCP connection to the WebSocket's address, unless it goes through a proxy.
async fn test_tcp(dial: &DialConfig) -> Finding {
    let port = dial
        .websocket
        .port_u16()
        .unwrap_or(match dial.websocket.scheme_str() {
            Some("ws" | "http") => 80,
            _ => 443,
        });
    let finding = Finding::new("tcp", format!("TCP {port}"));
    if let Ok(Some(proxy)) = dial.proxy_in_use() {
        return finding.skipped(format!("goes through the proxy {proxy}"));
    }
    let started = Instant::now();
    match dial.reach_tcp().await {
        Ok(addr) => finding.passed(format!("{addr} accepts in {}", format_elapsed(started))),
        Err(err) => finding.failed_with(
            &err,
            format!("start `qtunnel serve` there, and open TCP port {port} in its firewall"),
        ),
    }
}

/// Test a connection to the edge through the configured proxy.
async fn test_proxy(dial: &DialConfig) -> Finding {
    let finding = Finding::new("proxy", "proxy");
    let proxy = match dial.proxy_in_use() {
        Ok(Some(proxy)) => proxy,
        Ok(None) => return finding.skipped("none is configured"),
        Err(err) => return finding.failed_with(&err, PROXY_ADVICE),
    };
    match dial.reach_proxy().await {
        Ok(()) => finding.passed(format!("{proxy} connects to the edge")),
        Err(err) => finding.failed_with(&err, PROXY_ADVICE),
    }
}

/// Test the WebSocket upgrade.
async fn test_websocket(dial: &DialConfig, transport: Transport) -> Finding {
    let finding = Finding::new("websocket", "WebSocket");
    if transport == Transport::Quic {
        return finding.skipped("not used with --transport quic");
    }
    let started = Instant::now();
    match dial.reach_websocket().await {
        Ok(()) => finding.passed(format!("{} opens in {}", websocket_url(dial), format_elapsed(started))),
        Err(err) => finding.failed_with(
            &err,
            "the edge's HTTPS port must be reachable there (or see --websocket-url), and any proxy in front must pass WebSockets through",
        ),
    }
}

/// Open a session without tunnels, and close it. Return the statistics of its carrier.
async fn try_session(config: &AgentConfig) -> Result<LinkStats, ConnectError> {
    let without_tunnels = AgentConfig {
        id: AgentId::random(),
        tunnels: Vec::new(),
        ..config.clone()
    };
    let session = Session::open(
        &without_tunnels,
        SessionIdentity::first(ClaimMode::Own),
        &[],
        &PathMemory::default(),
    )
    .await?;
    let stats = session.link_stats();
    session.close().await;
    Ok(stats)
}

/// Derive the certificate and token findings from the result of opening a session.
fn authentication_findings(
    config: &AgentConfig,
    session: &Result<LinkStats, ConnectError>,
) -> (Finding, Finding) {
    let certificate = Finding::new("certificate", "certificate");
    let token = Finding::new("token", "token");
    let verified_by = describe_trust(config);
    let no_token = config.token.reveal().is_empty();
    match session {
        Ok(_) if no_token => (
            certificate.passed(verified_by),
            token.skipped("the edge requires none"),
        ),
        Ok(_) => (certificate.passed(verified_by), token.passed("accepted")),
        Err(ConnectError::Refused(Refusal::Unauthorized)) => {
            let (detail, advice) = match no_token {
                true => (
                    "the edge requires one, and none was given",
                    "run the `qtunnel login` line that `qtunnel serve` printed",
                ),
                false => (
                    "refused",
                    "compare it with the one that the edge uses; `qtunnel login` remembers another",
                ),
            };
            (
                certificate.passed(verified_by),
                token.failed(detail, advice),
            )
        }
        Err(err @ ConnectError::Refused(_)) => {
            let advice = "try again in a minute";
            (
                certificate.passed(verified_by),
                token.failed_with(err, advice),
            )
        }
        Err(ConnectError::Untrusted { why, advice, .. }) => (
            certificate.failed(why.as_str(), advice.as_str()),
            token.skipped("not sent to an unauthenticated server"),
        ),
        Err(err @ (ConnectError::NotAnEdge { .. } | ConnectError::Version { .. })) => (
            certificate.failed_with(
                err,
                "check the host and the port, and upgrade the older of the two",
            ),
            token.skipped("not sent to an unauthenticated server"),
        ),
        Err(_) => (
            certificate.skipped("the edge was not reached"),
            token.skipped("the edge was not reached"),
        ),
    }
}

/// Describe by what the edge's certificate was verified.
fn describe_trust(config: &AgentConfig) -> String {
    use crate::tls::Trust;
    match &config.trust {
        Trust::System => "it is signed by an authority that this machine trusts".to_owned(),
        Trust::Ca(path) => format!("it is signed by {}", path.display()),
        Trust::Pins(_) => "it has the pinned key".to_owned(),
    }
}

impl Finding {
    /// Create the finding of a step that has not been tested.
    fn new(part: &'static str, title: impl Into<String>) -> Self {
        Self {
            part,
            title: title.into(),
            verdict: Verdict::Skip,
            detail: String::new(),
            advice: None,
        }
    }

    /// Set the verdict to pass.
    fn passed(self, detail: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Pass,
            detail: detail.into(),
            ..self
        }
    }

    /// Keep the verdict at skip, with the reason.
    fn skipped(self, detail: impl Into<String>) -> Self {
        Self {
            detail: detail.into(),
            ..self
        }
    }

    /// Set the verdict to fail, with advice.
    fn failed(self, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Fail,
            detail: detail.into(),
            advice: Some(advice.into()),
            ..self
        }
    }

    /// Fail with an error and its causes as the detail.
    fn failed_with(self, err: &dyn Error, advice: impl Into<String>) -> Self {
        self.failed(chain(err), advice)
    }
}

/// Return the URL of the WebSocket without a trailing slash.
fn websocket_url(dial: &DialConfig) -> String {
    dial.websocket.to_string().trim_end_matches('/').to_owned()
}

/// Format the time since `since` in milliseconds.
fn format_elapsed(since: Instant) -> String {
    format!("{:.1} ms", since.elapsed().as_secs_f64() * 1e3)
}

/// The advice for a proxy that does not work.
const PROXY_ADVICE: &str =
    "check --proxy, HTTPS_PROXY, ALL_PROXY and NO_PROXY; --proxy off bypasses it";
