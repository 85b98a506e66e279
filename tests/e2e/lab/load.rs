//! Many visitors who ask again and again, each on a connection that is kept as long as it lasts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{Http2, Visitor, way};

/// Visitors at work.
pub struct Load {
    visitors: JoinSet<Vec<Outcome>>,
    stop: watch::Sender<bool>,
    answered: watch::Sender<u64>,
}

/// What became of one request.
#[derive(Debug)]
pub struct Outcome {
    pub begun: Instant,
    pub took: Duration,
    pub problem: Option<String>,
}

/// Between the requests of one visitor: six of them make 200 requests a second.
const PERIOD: Duration = Duration::from_millis(30);

impl Load {
    /// Begin without visitors.
    pub fn new() -> Self {
        Self {
            visitors: JoinSet::new(),
            stop: watch::Sender::new(false),
            answered: watch::Sender::new(0),
        }
    }

    /// Add a visitor over HTTP/1.1.
    pub fn add_http1(&mut self, visitor: Visitor) {
        let (stop, answered) = (self.stop.subscribe(), self.answered.clone());
        self.visitors.spawn(async move {
            let mut kept = None;
            let mut outcomes = Vec::new();
            let mut ticks = ticks();
            while !*stop.borrow() {
                ticks.tick().await;
                let begun = Instant::now();
                let answer = timeout(way::patience(), over_http1(&visitor, &mut kept)).await;
                let problem = answer.unwrap_or_else(|_| Err("no answer".into())).err();
                answered.send_modify(|answered| *answered += 1);
                outcomes.push(Outcome {
                    begun,
                    took: begun.elapsed(),
                    problem,
                });
            }
            outcomes
        });
    }

    /// Add a visitor over HTTP/2.
    pub fn add_http2(&mut self, addr: SocketAddr, host: String, ca: PathBuf) {
        let (stop, answered) = (self.stop.subscribe(), self.answered.clone());
        self.visitors.spawn(async move {
            let mut kept = Http2::connect(addr, &host, &ca).await;
            let mut outcomes = Vec::new();
            let mut ticks = ticks();
            while !*stop.borrow() {
                ticks.tick().await;
                let begun = Instant::now();
                let reply = loop {
                    match kept.attempt("/").await {
                        Ok(Some(reply)) => break Ok(reply.status),
                        Ok(None) => kept = Http2::connect(addr, &host, &ca).await,
                        Err(err) => break Err(format!("{err:?}")),
                    }
                };
                let problem = reply.and_then(is_fine).err();
                answered.send_modify(|answered| *answered += 1);
                outcomes.push(Outcome {
                    begun,
                    took: begun.elapsed(),
                    problem,
                });
            }
            outcomes
        });
    }

    /// Wait until so many more requests have been answered, well or not.
    pub async fn answers(&self, more: u64) {
        let mut answered = self.answered.subscribe();
        let until = *answered.borrow() + more;
        let reached = answered.wait_for(|answered| *answered >= until);
        super::within("the visitors' answers", reached)
            .await
            .expect("visitors");
    }

    /// Have them finish, and return what became of all requests.
    pub async fn stop(self) -> Vec<Outcome> {
        self.stop.send_replace(true);
        self.visitors
            .join_all()
            .await
            .into_iter()
            .flatten()
            .collect()
    }
}

fn ticks() -> tokio::time::Interval {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn over_http1(
    visitor: &Visitor,
    kept: &mut Option<SendRequest<Empty<Bytes>>>,
) -> Result<(), String> {
    let still_open = match kept.take() {
        Some(mut sender) => sender.ready().await.is_ok().then_some(sender),
        None => None,
    };
    let mut sender = match still_open {
        Some(sender) => sender,
        None => connect(visitor.addr).await?,
    };
    let request = Request::get("/").header("host", &visitor.host);
    let request = request.body(Empty::new()).expect("a valid request");
    let response = sender.send_request(request).await;
    let response = response.map_err(|err| format!("{err:?}"))?;
    let status = response.status().as_u16();
    let closes = response.headers().contains_key("connection");
    let body = response.into_body().collect().await;
    body.map_err(|err| format!("{err:?}"))?;
    if !closes {
        *kept = Some(sender);
    }
    is_fine(status)
}

async fn connect(addr: SocketAddr) -> Result<SendRequest<Empty<Bytes>>, String> {
    let stream = TcpStream::connect(addr).await;
    let stream = stream.map_err(|err| format!("{err:?}"))?;
    stream.set_nodelay(true).map_err(|err| err.to_string())?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|err| format!("{err:?}"))?;
    // It ends with its connection.
    tokio::spawn(connection);
    Ok(sender)
}

fn is_fine(status: u16) -> Result<(), String> {
    match status {
        200 => Ok(()),
        status => Err(format!("status {status}")),
    }
}
