//! What visitors do meanwhile: one long download, and many small requests.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{interval, sleep, timeout};

use crate::ground::{HOST, HTTP};
use crate::upstream::{SMALL, noise};

/// How long a small request may take before it counts as failed.
const ANSWER: Duration = Duration::from_secs(30);

/// How long a download may stand still before it counts as failed.
const STANDSTILL: Duration = Duration::from_secs(40);

/// Between two small requests: 20 a second.
const PERIOD: Duration = Duration::from_millis(50);

/// Ask for a path and return the response.
async fn ask(path: &str) -> Result<Response<Incoming>, String> {
    let tcp = TcpStream::connect(HTTP).await.map_err(text)?;
    tcp.set_nodelay(true).map_err(text)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(tcp)).await.map_err(text)?;
    // It ends with the response's body.
    tokio::spawn(connection);
    let request = Request::get(path).header("host", HOST);
    let request = request.body(Empty::<Bytes>::new()).map_err(text)?;
    let response = sender.send_request(request).await.map_err(text)?;
    match response.status().as_u16() {
        200 => Ok(response),
        status => Err(format!("status {status}")),
    }
}

/// One small request, and what it took.
pub async fn visit() -> Result<Duration, String> {
    let begun = Instant::now();
    let visit = async {
        let body = ask(&format!("/{SMALL}")).await?.collect().await;
        match body.map_err(text)?.to_bytes() == noise(0, SMALL) {
            true => Ok(begun.elapsed()),
            false => Err("other bytes".into()),
        }
    };
    timeout(ANSWER, visit)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {ANSWER:?}")))
}

/// Ask again and again until the answer is there; return when it was.
pub async fn visit_until_served() -> Instant {
    let deadline = Instant::now() + ANSWER;
    loop {
        let served = visit().await;
        let now = Instant::now();
        match served {
            Ok(_) => return now,
            Err(err) => assert!(now < deadline, "not served: {err}"),
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// A download under way.
pub struct Download {
    seen: Arc<Mutex<Vec<Instant>>>,
    task: JoinHandle<Result<(), String>>,
}

/// When the bytes of a download came.
pub struct Arrivals(Vec<Instant>);

impl Download {
    /// Begin to download so many bytes; returns when the first have come.
    pub async fn begin(bytes: usize) -> Self {
        let seen = Arc::<Mutex<Vec<Instant>>>::default();
        let noted = seen.clone();
        let response = ask(&format!("/{bytes}")).await.expect("a response");
        let task = tokio::spawn(async move { receive(response, bytes, &noted).await });
        let download = Self { seen, task };
        while download.seen.lock().expect("no panic").is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
        download
    }

    /// Wait until something has come after this moment.
    pub async fn arrives_after(&mut self, moment: Instant) {
        while self.seen.lock().expect("no panic").last() <= Some(&moment) {
            if self.task.is_finished() {
                panic!("the download has ended: {:?}", (&mut self.task).await);
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    /// Wait for its end. It must be exact.
    pub async fn exact(self) -> Arrivals {
        self.task
            .await
            .expect("no panic")
            .unwrap_or_else(|err| panic!("the download failed: {err}"));
        Arrivals(std::mem::take(&mut *self.seen.lock().expect("no panic")))
    }
}

async fn receive(
    response: Response<Incoming>,
    bytes: usize,
    seen: &Mutex<Vec<Instant>>,
) -> Result<(), String> {
    let mut body = response.into_body();
    let mut at = 0;
    loop {
        let frame = timeout(STANDSTILL, body.frame())
            .await
            .map_err(|_| format!("nothing came for {STANDSTILL:?} after {at} bytes"))?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|err| format!("after {at} bytes: {err}"))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        seen.lock().expect("no panic").push(Instant::now());
        for piece in data.chunks(4096) {
            if piece != noise(at, piece.len()) {
                return Err(format!("other bytes after {at}"));
            }
            at += piece.len();
        }
    }
    match at == bytes {
        true => Ok(()),
        false => Err(format!("{at} bytes of {bytes}")),
    }
}

impl Arrivals {
    /// The longest pause that ended after this moment.
    pub fn longest_stall(&self, from: Instant) -> Duration {
        let gaps = self.0.windows(2).filter(|pair| pair[1] > from);
        gaps.map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }
}

/// 20 small requests a second, as long as it is not ended.
pub struct Load {
    asking: JoinHandle<()>,
    outcomes: Arc<Mutex<Vec<Result<Duration, String>>>>,
    visits: Arc<tokio::sync::Mutex<JoinSet<()>>>,
}

/// What became of the requests of a load.
pub struct Served {
    /// What each took, the quickest first.
    pub took: Vec<Duration>,
    pub failed: Vec<String>,
}

impl Load {
    pub fn begin() -> Self {
        let outcomes = Arc::<Mutex<Vec<_>>>::default();
        let visits = Arc::<tokio::sync::Mutex<JoinSet<()>>>::default();
        let (kept, running) = (outcomes.clone(), visits.clone());
        let asking = tokio::spawn(async move {
            let mut ticks = interval(PERIOD);
            loop {
                ticks.tick().await;
                let kept = kept.clone();
                running.lock().await.spawn(async move {
                    let outcome = visit().await;
                    kept.lock().expect("no panic").push(outcome);
                });
            }
        });
        Self {
            asking,
            outcomes,
            visits,
        }
    }

    /// Ask no more, and wait for the answers that are still to come.
    pub async fn end(self) -> Served {
        self.asking.abort();
        let mut visits = self.visits.lock().await;
        while visits.join_next().await.is_some() {}
        let outcomes = std::mem::take(&mut *self.outcomes.lock().expect("no panic"));
        let (mut took, mut failed) = (Vec::new(), Vec::new());
        for outcome in outcomes {
            match outcome {
                Ok(time) => took.push(time),
                Err(err) => failed.push(err),
            }
        }
        took.sort();
        Served { took, failed }
    }
}

impl Served {
    /// What that share of the requests took at most.
    pub fn quantile(&self, share: f64) -> Duration {
        let at = (self.took.len() as f64 * share) as usize;
        let last = self.took.len().saturating_sub(1);
        self.took.get(at.min(last)).copied().unwrap_or_default()
    }
}

fn text(err: impl std::fmt::Display) -> String {
    err.to_string()
}
