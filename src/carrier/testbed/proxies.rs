//! Tests of dialling the edge through proxies, and of the errors when one refuses.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::impostor;
use super::lab::converse;
use super::real::{RealEdge, relay};
use crate::carrier::agent::dial::{DialConfig, dial};
use crate::carrier::{Carrier, Proxy, Transport};

const USER: &str = "ann";
const PASSWORD: &str = "open sesame";

async fn through(edge: &mut RealEdge, proxy: String) -> Result<(), String> {
    let config = DialConfig {
        proxy: Proxy::Url(proxy),
        ..edge.config(Transport::Websocket)
    };
    let (dialed, connection) = edge.agent(config).await.map_err(|err| err.to_string())?;
    let driver = tokio::spawn(dialed.driver.run());
    converse(connection, 1, 100_000, 100_000).await?;
    dialed.connection.close(0_u32.into(), b"");
    driver.await.unwrap();
    Ok(())
}

#[tokio::test]
async fn an_http_proxy_is_used_with_its_password_and_not_without() {
    let mut edge = RealEdge::start().await;
    let (proxy, _tasks) = http_proxy(StatusCode::OK).await;

    let with = through(&mut edge, format!("http://{USER}:open%20sesame@{proxy}")).await;
    let without = through(&mut edge, format!("http://{proxy}"))
        .await
        .unwrap_err();

    assert_eq!(with, Ok(()));
    assert!(
        without.contains(&format!("proxy {proxy} wants a user name and a password")),
        "{without}"
    );
}

#[tokio::test]
async fn an_http_proxy_that_refuses_is_named_with_its_status() {
    let mut edge = RealEdge::start().await;
    let (proxy, _tasks) = http_proxy(StatusCode::FORBIDDEN).await;

    let err = through(&mut edge, format!("http://{USER}:open%20sesame@{proxy}"))
        .await
        .unwrap_err();

    assert!(
        err.contains(&format!(
            "proxy {proxy} refused to connect to {}",
            edge.https
        )),
        "{err}"
    );
    assert!(err.contains("403 Forbidden"), "{err}");
    assert!(!err.contains("sesame"), "{err}");
}

#[tokio::test]
async fn a_socks5_proxy_is_used_with_its_password_and_not_without() {
    let mut edge = RealEdge::start().await;
    let (proxy, _tasks) = socks_proxy().await;

    let with = through(&mut edge, format!("socks5://{USER}:open%20sesame@{proxy}")).await;
    let without = through(&mut edge, format!("socks5h://{proxy}"))
        .await
        .unwrap_err();

    assert_eq!(with, Ok(()));
    assert!(without.contains(&format!("proxy {proxy}")), "{without}");
}

#[tokio::test]
async fn an_unreachable_proxy_is_named() {
    let mut edge = RealEdge::start().await;
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = nobody.local_addr().unwrap();
    drop(nobody);

    let err = through(&mut edge, format!("http://{addr}"))
        .await
        .unwrap_err();

    assert!(
        err.contains(&format!("cannot connect to proxy {addr} at {addr}")),
        "{err}"
    );
    assert!(err.contains("refused"), "{err}");
}

#[tokio::test]
async fn an_invalid_proxy_url_is_refused_without_showing_its_password() {
    let mut edge = RealEdge::start().await;

    let err = through(&mut edge, "gopher://ann:sesame@proxy:70".into())
        .await
        .unwrap_err();

    assert!(
        err.contains("gopher://proxy:70 is not the URL of a proxy"),
        "{err}"
    );
}

#[tokio::test]
async fn an_edge_without_websockets_is_distinguished_from_an_unreachable_one() {
    let mut edge = RealEdge::start().await;
    let (other, _tasks) = http_proxy(StatusCode::OK).await;
    let config = DialConfig {
        websocket: format!("ws://{other}").parse().unwrap(),
        ..edge.config(Transport::Websocket)
    };

    let err = edge.agent(config).await.err().unwrap().to_string();

    assert!(err.contains("to the websocket upgrade"), "{err}");
}

#[tokio::test]
async fn an_impostor_behind_an_accepted_outer_certificate_is_refused() {
    let impostor = RealEdge::with(impostor()).await;
    let endpoint = impostor.endpoint.clone();
    let _accepting = tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let _ = incoming.await;
        }
    });
    for transport in [Transport::Auto, Transport::Quic, Transport::Websocket] {
        let refused = dial(impostor.config(transport)).await.err().unwrap();

        assert!(refused.is_untrusted(), "{refused}");
        assert!(refused.to_string().contains("certificate"), "{refused}");
    }
}

#[tokio::test]
async fn the_edge_reports_an_agents_real_address() {
    let mut edge = RealEdge::start().await;
    let (front, _tasks) = relay(edge.http).await;
    let config = DialConfig {
        websocket: format!("ws://{front}").parse().unwrap(),
        ..edge.config(Transport::Websocket)
    };
    let inside = edge.connect_agent(config).await;
    let config = edge.config(Transport::Quic);
    let (dialed, outside) = edge.agent(config).await.unwrap();

    let inside = edge.socket.carrier(inside.remote_address()).unwrap();
    let outside = edge.socket.carrier(outside.remote_address()).unwrap();

    assert_eq!(
        (inside.carrier, inside.peer.address.ip()),
        (Carrier::WebSocket, front.ip())
    );
    assert_eq!(
        (outside.carrier, outside.peer.address.ip()),
        (Carrier::Udp, front.ip())
    );
    assert_eq!(dialed.carrier.borrow().carrier, Carrier::Udp);
}

/// Start a CONNECT proxy that requires a password, and answers with `status` if it is right.
async fn http_proxy(status: StatusCode) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let service = service_fn(move |request| connect(request, status));
            let http = http1::Builder::new().serve_connection(TokioIo::new(tcp), service);
            connections.spawn(async move {
                let _ = http.with_upgrades().await;
            });
        }
    });
    (addr, tasks)
}

async fn connect(
    request: Request<Incoming>,
    status: StatusCode,
) -> Result<Response<Empty<Bytes>>, hyper::Error> {
    let expected = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
    let given = request.headers().get("proxy-authorization");
    let mut response = Response::new(Empty::new());
    *response.status_mut() = match (request.method(), given) {
        (&Method::CONNECT, Some(given)) if given.as_bytes() == expected.as_bytes() => status,
        (&Method::CONNECT, _) => StatusCode::PROXY_AUTHENTICATION_REQUIRED,
        _ => StatusCode::NOT_FOUND,
    };
    if response.status() == StatusCode::OK {
        let target = request.uri().authority().unwrap().to_string();
        // It ends with either side of the tunnel.
        tokio::spawn(async move {
            let mut far = TcpStream::connect(target).await.unwrap();
            let mut near = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        });
    }
    Ok(response)
}

/// Start a SOCKS5 proxy that requires a password (RFC 1928, RFC 1929).
async fn socks_proxy() -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            connections.spawn(socks(tcp));
        }
    });
    (addr, tasks)
}

async fn socks(mut near: TcpStream) -> io::Result<()> {
    let [_version, methods] = read(&mut near).await?;
    let mut offered = vec![0; usize::from(methods)];
    near.read_exact(&mut offered).await?;
    if !offered.contains(&2) {
        return near.write_all(&[5, 0xff]).await;
    }
    near.write_all(&[5, 2]).await?;
    let [_version] = read(&mut near).await?;
    let (user, password) = (text(&mut near).await?, text(&mut near).await?);
    let right = user == USER && password == PASSWORD;
    near.write_all(&[1, u8::from(!right)]).await?;
    if !right {
        return Ok(());
    }
    let [5, 1, 0, 1] = read(&mut near).await? else {
        return near.write_all(&[5, 8, 0, 1, 0, 0, 0, 0, 0, 0]).await;
    };
    let [a, b, c, d, high, low] = read(&mut near).await?;
    let mut far = TcpStream::connect(
        ([a, b, c, d].into(), u16::from_be_bytes([high, low])) as (Ipv4Addr, u16)
    )
    .await?;
    near.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    tokio::io::copy_bidirectional(&mut near, &mut far)
        .await
        .map(drop)
}

async fn read<const N: usize>(tcp: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    tcp.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn text(tcp: &mut TcpStream) -> io::Result<String> {
    let [length] = read(tcp).await?;
    let mut text = vec![0; usize::from(length)];
    tcp.read_exact(&mut text).await?;
    String::from_utf8(text).map_err(io::Error::other)
}
