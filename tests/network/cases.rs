//! What happens to the network, and what is measured then. Times are in milliseconds.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::time::{sleep, sleep_until};

use crate::ground::{EDGE_TOO, Ground, RATE};
use crate::traffic::{Download, Load, Served, visit, visit_until_served};
use crate::wall::{Block, Cut};

/// What was measured, by name.
pub type Figures = Vec<(&'static str, f64)>;

/// The figure that counts the requests that failed.
pub const FAILED: &str = "failed";

/// How long the long cases go on.
#[derive(Clone, Copy)]
pub enum Length {
    /// As the tests run: long enough for what is to be seen to happen.
    Short,
    /// As the table is made: the times that the promises name.
    Whole,
}

impl Length {
    fn choose(self, short: Duration, whole: Duration) -> Duration {
        match self {
            Self::Short => short,
            Self::Whole => whole,
        }
    }
}

/// A case: its name in the table, and what it does.
pub struct Case {
    pub name: &'static str,
    pub run: fn(Length) -> Figures,
    /// Figures and what they may be at most in a single run.
    pub limits: &'static [(&'static str, f64)],
}

const SECOND: Duration = Duration::from_secs(1);

/// UDP is blocked before the agent starts.
pub async fn blocked_from_the_start(ground: &mut Ground) -> Figures {
    ground.block_udp(Block::Both);

    let started = Instant::now();
    let mut agent = ground.agent("auto");
    let served = visit_until_served().await;

    assert_eq!(agent.ready().await, "websocket");
    vec![("answered", millis(served - started))]
}

/// UDP is blocked in the middle of a download, and later passes again.
pub async fn blocked_and_healed(ground: &mut Ground, block: Block) -> Figures {
    let mut agent = ground.agent("auto");
    agent.ready_on("quic").await;
    let load = Load::begin();
    let download = Download::begin(seconds_of_download(6)).await;
    sleep(SECOND).await;

    let blocked = Instant::now();
    ground.block_udp(block);
    let (moved, _) = agent.moved_to("websocket").await;
    let arrivals = download.exact().await;

    ground.heal();
    let healed = Instant::now();
    let (back, _) = agent.moved_to("quic").await;
    Download::begin(seconds_of_download(1)).await.exact().await;
    let served = load.end().await;
    vec![
        ("stall", millis(arrivals.longest_stall(blocked))),
        ("switch", millis(moved - blocked)),
        ("back", millis(back - healed)),
        (FAILED, failures(&served)),
    ]
}

/// The WebSocket is lost while UDP is blocked: there is nothing but another WebSocket.
pub async fn websocket_cut(ground: &mut Ground, cut: Cut) -> Figures {
    ground.block_udp(Block::Both);
    let mut agent = ground.agent("auto");
    agent.ready_on("websocket").await;
    let load = Load::begin();
    let download = Download::begin(seconds_of_download(6)).await;
    sleep(SECOND).await;

    let lost = Instant::now();
    ground.cut_websocket(cut);
    let arrivals = download.exact().await;
    let served = load.end().await;
    vec![
        ("stall", millis(arrivals.longest_stall(lost))),
        (FAILED, failures(&served)),
    ]
}

/// The WebSocket is lost soon after UDP passes again.
pub async fn websocket_cut_while_udp_passes(ground: &mut Ground, cut: Cut) -> Figures {
    ground.block_udp(Block::Both);
    let mut agent = ground.agent("auto");
    agent.ready_on("websocket").await;
    let load = Load::begin();
    let download = Download::begin(seconds_of_download(6)).await;
    sleep(SECOND).await;

    ground.heal();
    let lost = Instant::now();
    ground.cut_websocket(cut);
    let (moved, _) = agent.moved_to("quic").await;
    let arrivals = download.exact().await;
    let served = load.end().await;
    vec![
        ("stall", millis(arrivals.longest_stall(lost))),
        ("switch", millis(moved - lost)),
        (FAILED, failures(&served)),
    ]
}

/// UDP passes for 5 s and is blocked for 2 s, again and again.
pub async fn flapping(ground: &mut Ground, length: Length) -> Figures {
    let whole = length.choose(14 * SECOND, 60 * SECOND);
    let mut agent = ground.agent("auto");
    agent.ready().await;
    let begun = tokio::time::Instant::now();
    let load = Load::begin();
    let download = Download::begin(seconds_of_download(whole.as_secs() as usize * 2 / 3)).await;
    let mut turn = begun;
    let first = Instant::now();
    while turn < begun + whole {
        sleep_until(turn + 5 * SECOND).await;
        ground.block_udp(Block::Both);
        turn += 7 * SECOND;
        sleep_until(turn).await;
        ground.heal();
    }
    let arrivals = download.exact().await;
    let served = load.end().await;
    vec![
        ("stall", millis(arrivals.longest_stall(first))),
        ("requests", served.took.len() as f64),
        ("slowest", millis(served.quantile(1.0))),
        (FAILED, failures(&served)),
    ]
}

/// The agent's machine gets another address in the middle of a download.
pub async fn another_address(ground: &mut Ground) -> Figures {
    let mut agent = ground.agent("auto");
    agent.ready_on("quic").await;
    change_address_in_a_download(ground).await
}

/// The same where only a WebSocket passes, whose TCP connection dies with the address.
pub async fn another_address_over_a_websocket(ground: &mut Ground) -> Figures {
    ground.block_udp(Block::Both);
    let mut agent = ground.agent("auto");
    agent.ready_on("websocket").await;
    change_address_in_a_download(ground).await
}

async fn change_address_in_a_download(ground: &mut Ground) -> Figures {
    let load = Load::begin();
    let download = Download::begin(seconds_of_download(3)).await;
    sleep(SECOND).await;

    let changed = Instant::now();
    ground.change_address();
    let arrivals = download.exact().await;
    let served = load.end().await;
    vec![
        ("stall", millis(arrivals.longest_stall(changed))),
        (FAILED, failures(&served)),
    ]
}

/// A NAT gives the agent another port every 5 s.
pub async fn nat_rebinding(ground: &mut Ground, length: Length) -> Figures {
    let times = length.choose(3 * SECOND, 12 * SECOND).as_secs();
    ground.rebind_nat("20000-20999");
    let mut agent = ground.agent("auto");
    agent.ready().await;
    let load = Load::begin();
    let download = Download::begin(seconds_of_download(times as usize * 4)).await;
    let first = Instant::now();
    for turn in 0..times {
        sleep(5 * SECOND).await;
        let from = 21_000 + 1_000 * turn;
        ground.rebind_nat(&format!("{from}-{}", from + 999));
    }
    let arrivals = download.exact().await;
    let served = load.end().await;
    vec![
        ("stall", millis(arrivals.longest_stall(first))),
        ("requests", served.took.len() as f64),
        ("slowest", millis(served.quantile(1.0))),
        (FAILED, failures(&served)),
    ]
}

/// The agent's interface goes down for 10 s and comes up with another address.
pub async fn interface_down(ground: &mut Ground) -> Figures {
    let mut agent = ground.agent("auto");
    agent.ready().await;
    let load = Load::begin();
    let mut download = Download::begin(seconds_of_download(6)).await;
    sleep(SECOND).await;

    ground.agents_space.ip("link set wire down");
    sleep(10 * SECOND).await;
    ground.change_address();
    ground.agents_space.ip("link set wire up");
    let up = Instant::now();
    ground.agents_space.ip("route add default dev wire");
    visit_until_served().await;
    let answered = up.elapsed();
    download.arrives_after(up).await;
    let went_on = up.elapsed();
    download.exact().await;
    let served = load.end().await;
    vec![
        ("answered", millis(answered)),
        ("went on", millis(went_on)),
        (FAILED, failures(&served)),
    ]
}

/// The agent's machine sleeps.
pub async fn sleep_and_wake(ground: &mut Ground, length: Length) -> Figures {
    let mut agent = ground.agent("auto");
    agent.ready().await;
    visit().await.expect("served");

    agent.signal(Signal::SIGSTOP);
    // Longer than the edge keeps a silent session.
    sleep(length.choose(20 * SECOND, 60 * SECOND)).await;
    agent.signal(Signal::SIGCONT);
    let woke = Instant::now();
    let served = visit_until_served().await;
    vec![("answered", millis(served - woke))]
}

/// The agent's machine sleeps for less than a session's life, in the middle of a download.
pub async fn nap(ground: &mut Ground) -> Figures {
    let mut agent = ground.agent("auto");
    agent.ready().await;
    let mut download = Download::begin(seconds_of_download(6)).await;
    sleep(SECOND).await;

    agent.signal(Signal::SIGSTOP);
    sleep(6 * SECOND).await;
    agent.signal(Signal::SIGCONT);
    let woke = Instant::now();
    download.arrives_after(woke).await;
    let went_on = woke.elapsed();
    download.exact().await;
    vec![("went on", millis(went_on))]
}

/// The edge has two addresses and the agent comes to the second, over UDP alone.
pub async fn second_address_of_the_edge(ground: &mut Ground) -> Figures {
    let started = Instant::now();
    let mut agent = ground.agent_of(EDGE_TOO, "quic");
    let served = visit_until_served().await;
    agent.ready().await;
    Download::begin(seconds_of_download(1)).await.exact().await;
    vec![("answered", millis(served - started))]
}

/// Small requests beside a download.
pub async fn beside_a_download(ground: &mut Ground, transport: &str) -> Figures {
    let mut agent = ground.agent(transport);
    agent.ready().await;
    let download = Download::begin(seconds_of_download(6)).await;
    sleep(SECOND).await;
    let load = Load::begin();
    sleep(4 * SECOND).await;
    assert!(!download.is_over(), "the download is too short");
    let served = load.end().await;
    download.exact().await;
    vec![
        ("p50", millis(served.quantile(0.5))),
        ("p99", millis(served.quantile(0.99))),
        (FAILED, failures(&served)),
    ]
}

/// The bytes that the link carries in so many seconds at most.
fn seconds_of_download(seconds: usize) -> usize {
    RATE as usize / 8 * seconds
}

fn failures(served: &Served) -> f64 {
    for failure in served.failed.iter().take(3) {
        eprintln!("a request failed: {failure}");
    }
    served.failed.len() as f64
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}
