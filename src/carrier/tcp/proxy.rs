//! Proxies between an agent and the edge: HTTP CONNECT and SOCKS5, chosen by the same rules as curl.

use std::{error::Error, fmt, future::ready, io, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{
    HeaderValue, Request, StatusCode, Uri,
    header::{HOST, PROXY_AUTHORIZATION},
};
use http_body_util::Empty;
use hyper_util::{
    client::{
        legacy::connect::proxy::SocksV5,
        proxy::matcher::{Intercept, Matcher},
    },
    rt::TokioIo,
};
use tokio::time::timeout;
use tower::service_fn;
use tower_service::Service;

use super::bbr_restart::BbrRestart;
use super::connect;
use super::connect::{Peer, STEP_TIMEOUT, TcpConnectError, TunnelResponse};
use crate::carrier::congestion::CongestionOwner;
use crate::carrier::tcp::byte_stream::ByteStream;

/// The proxy for WebSockets. UDP never goes through one.
#[derive(Clone, Default)]
pub enum Proxy {
    /// `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, read when dialling.
    #[default]
    FromEnvironment,
    /// No proxy, whatever the environment says.
    Direct,
    /// The proxy at this URL: `http://`, `https://` or `socks5://`, with credentials in the URL if it needs them.
    Url(String),
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FromEnvironment => "FromEnvironment",
            Self::Direct => "Direct",
            // It may hold a password.
            Self::Url(_) => "Url(..)",
        })
    }
}

impl Proxy {
    /// Choose the proxy for a destination, or `None` for a direct connection.
    ///
    /// # Errors
    /// [`TcpConnectError::ProxyUrl`] if the configured URL is not that of a proxy.
    pub(crate) fn intercept(
        &self,
        use_tls: bool,
        host: &str,
        port: u16,
    ) -> Result<Option<Intercept>, TcpConnectError> {
        let scheme = if use_tls { "https" } else { "http" };
        let target: Uri = match format!("{scheme}://{host}:{port}/").parse() {
            Ok(target) => target,
            Err(_) => return Ok(None),
        };
        match self {
            Self::Direct => Ok(None),
            Self::FromEnvironment => Ok(Matcher::from_env().intercept(&target)),
            Self::Url(url) => match Matcher::builder()
                .all(url.clone())
                .build()
                .intercept(&target)
            {
                Some(proxy) => Ok(Some(proxy)),
                None => Err(TcpConnectError::ProxyUrl(without_credentials(url))),
            },
        }
    }
}

/// A connection to the edge's TCP port.
pub(crate) struct Connected {
    pub(crate) io: Box<dyn ByteStream>,
    /// The address that was connected to: the edge's, or that of a proxy.
    pub(crate) address: SocketAddr,
    /// The owner of congestion control on the path to the edge.
    pub(crate) congestion: CongestionOwner,
}

/// Connect to the edge's TCP port, through a proxy if there is one.
pub(crate) async fn connect(
    proxy: &Proxy,
    use_tls: bool,
    host: &str,
    port: u16,
    proxy_tls: &Arc<rustls::ClientConfig>,
) -> Result<Connected, TcpConnectError> {
    let Some(proxy) = proxy.intercept(use_tls, host, port)? else {
        let peer = Peer::Edge(format!("{host}:{port}"));
        return direct(&peer, host, port).await;
    };
    let uri = proxy.uri();
    let scheme = uri.scheme_str().unwrap_or_default();
    let via = uri
        .host()
        .ok_or_else(|| TcpConnectError::ProxyUrl(uri.to_string()))?;
    let via_port = uri.port_u16().unwrap_or(match scheme {
        "https" => 443,
        "http" => 80,
        _ => 1080,
    });
    let peer = Peer::Proxy(format!("{via}:{via_port}"));
    let Connected { io, address, .. } = direct(&peer, via, via_port).await?;
    let io = match scheme {
        "http" => tunnel(&peer, io, host, port, proxy.basic_auth()).await?,
        "https" => {
            let io = connect::tls_handshake(&peer, via, io, proxy_tls).await?;
            tunnel(&peer, io, host, port, proxy.basic_auth()).await?
        }
        "socks5" | "socks5h" => socks5(&peer, io, host, port, &proxy).await?,
        _ => {
            return Err(TcpConnectError::ProxyUrl(without_credentials(
                &uri.to_string(),
            )));
        }
    };
    Ok(Connected {
        io,
        address,
        // The kernel does not see congestion beyond the proxy.
        congestion: CongestionOwner::Quic,
    })
}

async fn direct(peer: &Peer, host: &str, port: u16) -> Result<Connected, TcpConnectError> {
    let addresses = connect::resolve(host, port, STEP_TIMEOUT).await?;
    let first = addresses[0];
    let tcp = connect::connect(peer, addresses).await?;
    let address = tcp.peer_addr().unwrap_or(first);
    Ok(Connected {
        congestion: CongestionOwner::of(&tcp, address),
        io: Box::new(BbrRestart::new(tcp)),
        address,
    })
}

/// Open a tunnel with HTTP CONNECT (RFC 9110 §9.3.6).
async fn tunnel(
    peer: &Peer,
    io: Box<dyn ByteStream>,
    host: &str,
    port: u16,
    credentials: Option<&HeaderValue>,
) -> Result<Box<dyn ByteStream>, TcpConnectError> {
    let target = format!("{host}:{port}");
    let mut request = Request::connect(&target).header(HOST, &target);
    if let Some(credentials) = credentials {
        request = request.header(PROXY_AUTHORIZATION, credentials);
    }
    let Ok(request) = request.body(Empty::<Bytes>::new()) else {
        return Err(TcpConnectError::ProxyUrl(target));
    };
    match connect::request_tunnel(peer, io, request).await? {
        TunnelResponse::Upgraded(_, io) => Ok(io),
        TunnelResponse::Refused(StatusCode::PROXY_AUTHENTICATION_REQUIRED) => {
            Err(TcpConnectError::ProxyAuthentication { peer: peer.clone() })
        }
        TunnelResponse::Refused(status) => Err(TcpConnectError::ProxyRefused {
            peer: peer.clone(),
            target,
            status,
        }),
    }
}

/// Open a tunnel with SOCKS5 (RFC 1928, RFC 1929). The proxy resolves the name: networks that require a proxy
/// often have no DNS for outside names.
async fn socks5(
    peer: &Peer,
    io: Box<dyn ByteStream>,
    host: &str,
    port: u16,
    proxy: &Intercept,
) -> Result<Box<dyn ByteStream>, TcpConnectError> {
    let target = format!("{host}:{port}");
    // The connector needs a service that connects; the connection exists already.
    let mut io = Some(TokioIo::new(io));
    let connected = service_fn(move |_: Uri| {
        let io = io.take().ok_or(io::ErrorKind::NotConnected);
        ready(io.map_err(io::Error::from))
    });
    let mut socks = SocksV5::new(proxy.uri().clone(), connected);
    if let Some((user, password)) = proxy.raw_auth() {
        socks = socks.with_auth(user.into(), password.into());
    }
    let failed = |err: Box<dyn Error + Send + Sync>| TcpConnectError::Socks {
        peer: peer.clone(),
        target: target.clone(),
        err,
    };
    let destination = Uri::builder()
        .scheme("https")
        .authority(target.clone())
        .path_and_query("/")
        .build()
        .map_err(|err| failed(err.into()))?;
    match timeout(STEP_TIMEOUT, socks.call(destination)).await {
        Ok(Ok(io)) => Ok(Box::new(io.into_inner())),
        Ok(Err(err)) => Err(failed(err.to_string().into())),
        Err(_) => Err(TcpConnectError::TimedOut { peer: peer.clone() }),
    }
}

fn without_credentials(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        (None, Some((_, host))) => host.into(),
        (_, None) => url.into(),
    }
}

/// Access for the fuzz target of proxies.
#[cfg(all(unix, any(test, fuzzing)))]
pub(crate) mod fuzzing {
    use super::*;

    /// Connect through a proxy of each kind, over connections that `io` creates.
    pub(crate) async fn responses(
        io: impl Fn() -> Box<dyn ByteStream>,
    ) -> Vec<Result<(), TcpConnectError>> {
        let hop = Peer::Proxy("proxy:1".into());
        let mut results = Vec::new();
        let connected = tunnel(&hop, io(), "edge.example", 443, None).await;
        results.push(connected.map(drop));
        for url in ["socks5://proxy:1", "socks5://user:password@proxy:1"] {
            let proxy = Proxy::Url(url.into()).intercept(true, "edge.example", 443);
            if let Ok(Some(proxy)) = proxy {
                let connected = socks5(&hop, io(), "edge.example", 443, &proxy).await;
                results.push(connected.map(drop));
            }
        }
        results
    }
}
