//! Whether an agent could reach its edge from here, and over what: every part of the way by itself, then
//! the way as a whole.

use std::error::Error;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use tokio::join;
use tokio::time::Instant;

use super::config::AgentConfig;
use super::event::LinkStats;
use super::session::connect_error::ConnectError;
use super::session::dial::dialing;
use super::session::open::{Session, SessionIdentity};
use crate::carrier::{
    DialConfig, ETHERNET_PACKET, PathMemory, SMALLEST_FULL_PACKET, Transport, UDP_ANSWER,
    ask_over_udp, refused_by_all,
};
use crate::error_chain::chain;
use crate::proto::{AgentId, ClaimMode, Refusal};

/// What was found on the way to an edge.
#[derive(Debug)]
pub struct Report {
    /// One for each part of the way, in the order in which they depend on each other.
    pub findings: Vec<Finding>,
    /// What a session would travel on, or why there would be none.
    pub session: Result<LinkStats, ConnectError>,
}

/// What was found out about one part of the way.
#[derive(Debug)]
pub struct Finding {
    /// Which part, in a word for programs: `dns`, `tcp`, `proxy`, `udp`, `udp-full-size`, `websocket`,
    /// `certificate` or `token`.
    pub part: &'static str,
    /// Which part, for people: `UDP 443`.
    pub title: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was seen.
    pub detail: String,
    /// What to do about it.
    pub advice: Option<String>,
}

/// How a part of the way is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Pass,
    /// Not as it should be. Agents may have another way.
    Fail,
    /// Not needed, or not to be found out.
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

/// Look at everything that an agent with this configuration needs. Nothing is published, and agents of
/// the same name are not disturbed.
///
/// # Errors
/// [`ConnectError`] if the configuration itself cannot be used.
pub async fn check(config: &AgentConfig) -> Result<Report, ConnectError> {
    let (way, _) = dialing(config, &PathMemory::default())?;
    let over_udp = async {
        let (dns, edges) = look_up(&way).await;
        let (udp, full_size) = ask(&way, config.transport, &edges).await;
        (dns, udp, full_size)
    };
    let over_tcp = async { join!(reach_tcp(&way), reach_proxy(&way)) };
    let websocket = reach_websocket(&way, config.transport);
    let ((dns, udp, full_size), (tcp, proxy), websocket) = join!(over_udp, over_tcp, websocket);
    let session = meet(config).await;
    let (certificate, token) = recognise(config, &session);
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

async fn look_up(way: &DialConfig) -> (Finding, Vec<SocketAddr>) {
    let finding = Finding::of("dns", "DNS");
    let edges = match way.look_up().await {
        Ok(edges) => edges,
        Err(err) => {
            let advice = "check the name that --server gives, and the DNS of this machine";
            return (finding.fails(&err, advice), Vec::new());
        }
    };
    if way.host.parse::<IpAddr>().is_ok() {
        return (
            finding.skipped(format!("{} is an address", way.host)),
            edges,
        );
    }
    let addresses: Vec<_> = edges.iter().map(|edge| edge.ip().to_string()).collect();
    let detail = format!("{} is {}", way.host, addresses.join(", "));
    (finding.passes(detail), edges)
}

async fn ask(way: &DialConfig, transport: Transport, edges: &[SocketAddr]) -> (Finding, Finding) {
    let udp = Finding::of("udp", format!("UDP {}", way.port));
    let full_size = Finding::of("udp-full-size", "UDP, full size");
    if transport == Transport::Websocket {
        let why = "not used with --transport websocket";
        return (udp.skipped(why), full_size.skipped(why));
    }
    if edges.is_empty() {
        let why = "no address to ask";
        return (udp.skipped(why), full_size.skipped(why));
    }
    let (small, large) = (SMALLEST_FULL_PACKET, usize::from(ETHERNET_PACKET));
    let asked = Instant::now();
    let answered = tokio::select! {
        answered = ask_over_udp(edges, small) => answered,
        () = refused_by_all(edges) => {
            let advice = "start `qtunnel serve` there, or look at its --quic";
            return (
                udp.failed("nobody listens there (connection refused)", advice),
                full_size.skipped("nothing passes"),
            );
        }
    };
    let edge = match answered {
        Ok(Some(edge)) => edge,
        Ok(None) => {
            let detail = format!("no answer within {} s", UDP_ANSWER.as_secs());
            let advice = format!(
                "open UDP port {} at the edge and in every firewall on the way{}",
                way.port,
                match transport {
                    Transport::Auto => "; until then agents use the WebSocket",
                    _ => ", or allow the WebSocket with --transport auto",
                }
            );
            return (
                udp.failed(detail, advice),
                full_size.skipped("nothing passes"),
            );
        }
        Err(err) => {
            let advice = "this machine gives no UDP socket: look at its limits";
            return (udp.fails(&err, advice), full_size.skipped("nothing passes"));
        }
    };
    let udp = udp.passes(format!("{edge} answers in {}", brief(asked)));
    let full_size = match ask_over_udp(&[edge], large).await {
        Ok(Some(_)) => full_size.passes(format!("{large} bytes pass")),
        _ => full_size.failed(
            format!("{small} bytes pass, {large} do not"),
            "nothing must be done, agents send smaller packets; a VPN on the way may have a small MTU",
        ),
    };
    (udp, full_size)
}

async fn reach_tcp(way: &DialConfig) -> Finding {
    let port = way
        .websocket
        .port_u16()
        .unwrap_or(match way.websocket.scheme_str() {
            Some("ws" | "http") => 80,
            _ => 443,
        });
    let finding = Finding::of("tcp", format!("TCP {port}"));
    if let Ok(Some(proxy)) = way.proxy_in_use() {
        return finding.skipped(format!("goes through the proxy {proxy}"));
    }
    let asked = Instant::now();
    match way.reach_tcp().await {
        Ok(addr) => finding.passes(format!("{addr} accepts in {}", brief(asked))),
        Err(err) => finding.fails(
            &err,
            format!("start `qtunnel serve` there, and open TCP port {port} in its firewall"),
        ),
    }
}

async fn reach_proxy(way: &DialConfig) -> Finding {
    let finding = Finding::of("proxy", "proxy");
    let proxy = match way.proxy_in_use() {
        Ok(Some(proxy)) => proxy,
        Ok(None) => return finding.skipped("none is configured"),
        Err(err) => return finding.fails(&err, PROXY_ADVICE),
    };
    match way.reach_proxy().await {
        Ok(()) => finding.passes(format!("{proxy} connects to the edge")),
        Err(err) => finding.fails(&err, PROXY_ADVICE),
    }
}

async fn reach_websocket(way: &DialConfig, transport: Transport) -> Finding {
    let finding = Finding::of("websocket", "WebSocket");
    if transport == Transport::Quic {
        return finding.skipped("not used with --transport quic");
    }
    let asked = Instant::now();
    match way.reach_websocket().await {
        Ok(()) => finding.passes(format!("{} opens in {}", url(way), brief(asked))),
        Err(err) => finding.fails(
            &err,
            "the edge's HTTPS must be reachable there (or see --websocket-url), and what stands in front must pass WebSockets on",
        ),
    }
}

/// Open a session that publishes nothing, and leave.
async fn meet(config: &AgentConfig) -> Result<LinkStats, ConnectError> {
    let nobody = AgentConfig {
        id: AgentId::random(),
        tunnels: Vec::new(),
        ..config.clone()
    };
    let session = Session::open(
        &nobody,
        SessionIdentity::first(ClaimMode::Own),
        &[],
        &PathMemory::default(),
    )
    .await?;
    let transported = session.transport_now();
    session.leave().await;
    Ok(transported)
}

/// Tell from how a session came about, or did not, whether the two ends recognised each other.
fn recognise(
    config: &AgentConfig,
    session: &Result<LinkStats, ConnectError>,
) -> (Finding, Finding) {
    let certificate = Finding::of("certificate", "certificate");
    let token = Finding::of("token", "token");
    let met = certificate_words(config);
    let none = config.token.reveal().is_empty();
    match session {
        Ok(_) if none => (
            certificate.passes(met),
            token.skipped("the edge wants none"),
        ),
        Ok(_) => (certificate.passes(met), token.passes("accepted")),
        Err(ConnectError::Refused(Refusal::Unauthorized)) => {
            let (detail, advice) = match none {
                true => (
                    "the edge wants one, and none was given",
                    "run the `qtunnel login` line that `qtunnel serve` printed",
                ),
                false => (
                    "refused",
                    "compare it with the one that the edge uses; `qtunnel login` remembers another",
                ),
            };
            (certificate.passes(met), token.failed(detail, advice))
        }
        Err(err @ ConnectError::Refused(_)) => {
            let advice = "try again in a minute";
            (certificate.passes(met), token.fails(err, advice))
        }
        Err(ConnectError::Untrusted { why, advice, .. }) => (
            certificate.failed(why.as_str(), advice.as_str()),
            token.skipped("not shown to a stranger"),
        ),
        Err(err @ (ConnectError::NotAnEdge { .. } | ConnectError::Version { .. })) => (
            certificate.fails(
                err,
                "check the host and the port, and upgrade the older of the two",
            ),
            token.skipped("not shown to a stranger"),
        ),
        Err(_) => (
            certificate.skipped("the edge was not reached"),
            token.skipped("the edge was not reached"),
        ),
    }
}

fn certificate_words(config: &AgentConfig) -> String {
    use crate::tls::Trust;
    match &config.trust {
        Trust::System => "this machine's authorities vouch for it".to_owned(),
        Trust::Ca(path) => format!("{} vouches for it", path.display()),
        Trust::Pins(_) => "it has the pinned key".to_owned(),
    }
}

impl Finding {
    fn of(part: &'static str, title: impl Into<String>) -> Self {
        Self {
            part,
            title: title.into(),
            verdict: Verdict::Skip,
            detail: String::new(),
            advice: None,
        }
    }

    fn passes(self, detail: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Pass,
            detail: detail.into(),
            ..self
        }
    }

    fn skipped(self, detail: impl Into<String>) -> Self {
        Self {
            detail: detail.into(),
            ..self
        }
    }

    fn failed(self, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Fail,
            detail: detail.into(),
            advice: Some(advice.into()),
            ..self
        }
    }

    fn fails(self, err: &dyn Error, advice: impl Into<String>) -> Self {
        self.failed(chain(err), advice)
    }
}

fn url(way: &DialConfig) -> String {
    way.websocket.to_string().trim_end_matches('/').to_owned()
}

fn brief(since: Instant) -> String {
    format!("{:.1} ms", since.elapsed().as_secs_f64() * 1e3)
}

const PROXY_ADVICE: &str =
    "look at --proxy, HTTPS_PROXY, ALL_PROXY and NO_PROXY; --proxy off goes past it";
