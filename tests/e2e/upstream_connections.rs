//! Connections to upstreams: none is in anybody's way, and a dead address is passed over.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use qtunnel::{Address, Carrier, Upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::join;
use tokio::net::{TcpListener, TcpStream};

use crate::lab::process::Process;
use crate::lab::{Lab, Server, tools, within};

on_each_carrier!(an_upstream_with_one_thread_serves_visitors_that_come_at_once);
async fn an_upstream_with_one_thread_serves_visitors_that_come_at_once(carrier: Carrier) {
    let Some(python) = tools::program("python3") else {
        return;
    };
    let mut command = python.script("single_threaded_server.py");
    command.arg("0.2");
    let mut server = Process::spawn(command);
    let port = server.port().await;
    let lab = Lab::start().await.over(carrier);
    let _agent = lab.agent("blog", at(&format!("127.0.0.1:{port}"))).await;
    let visitor = lab.visitor("blog");

    for _ in 0..2 {
        let started = Instant::now();
        let replies = join_all((0..3).map(|_| visitor.get("/"))).await;

        assert!(replies.iter().all(|reply| reply.status == 200));
        // Three times 200 ms of work, and far less than any idle connection's time.
        let took = started.elapsed();
        assert!(took < Duration::from_millis(1800), "{took:?}");
    }
    let local = async {
        let mut local = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        local.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        local.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = tokio::time::timeout(Duration::from_secs(3), local).await;
    assert!(answer.unwrap().starts_with("HTTP/1.1 200"));
}

on_each_carrier!(an_idle_connection_to_an_upstream_is_closed_by_itself);
async fn an_idle_connection_to_an_upstream_is_closed_by_itself(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let visitor = lab.visitor("blog");

    let (reply, mut wire) = join!(visitor.get("/"), async {
        let mut wire = wires.next().await;
        wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .await;
        wire
    });

    assert_eq!(reply.status, 200);
    assert!(within("the close", wire.rest()).await.is_empty());
}

#[tokio::test]
async fn localhost_is_reached_whichever_family_it_listens_on() {
    let lab = Lab::start().await;
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(listener) = TcpListener::bind(address).await else {
            return tools::skip("needs IPv6 on loopback");
        };
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    if matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                        let _ = stream.write_all(answer).await;
                    }
                });
            }
        });
        let agent = lab.agent("blog", at(&format!("localhost:{port}"))).await;

        let reply = lab.visitor("blog").get("/").await;

        assert_eq!((reply.status, reply.text()), (200, "ok"), "{address}");
        agent.stop().await.unwrap();
        server.abort();
    }
}

fn at(address: &str) -> Upstream {
    address.parse::<Address>().unwrap().into()
}
