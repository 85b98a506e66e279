//! An edge on several threads.

use std::path::Path;

use futures_util::future::join_all;

use crate::lab::{EdgeProcess, Http2, Running, Server, eventually};

#[tokio::test]
async fn sessions_and_their_visitors_are_spread_over_the_workers() {
    let home = tempfile::tempdir().unwrap();
    let edge = EdgeProcess::start_with_https(home.path(), &["--workers", "3"]).await;
    let upstream = Server::text("fine").await;
    let names = ["one", "two", "three"];
    let mut agents = Vec::new();
    for name in names {
        agents.push(Running::start(edge.agent_config(name, &upstream)).await);
    }
    let https = edge.https.unwrap();
    let http2 = names.map(|name| format!("{name}.localhost"));
    let http2 = http2
        .iter()
        .map(|host| async { Http2::connect(https, host, &edge.ca()).await });
    let http2 = join_all(http2).await;

    let all_have_worked = || async {
        for (name, http2) in names.iter().zip(&http2) {
            assert_eq!(edge.visitor(name).get("/").await.text(), "fine");
            assert_eq!(http2.get("/").await.text(), "fine");
        }
        let worked = threads(edge.process.pid().as_raw())
            .into_iter()
            .filter(|(name, ticks)| name.starts_with("worker-") && *ticks > 0);
        worked.count() == 2
    };

    eventually("every worker's share", all_have_worked).await;
}

/// Names of a process's threads, and how many ticks of the clock each has worked.
fn threads(pid: i32) -> Vec<(String, u64)> {
    let tasks = Path::new("/proc").join(pid.to_string()).join("task");
    let tasks = std::fs::read_dir(tasks).expect("the process is there");
    tasks
        .map(|task| {
            let stat = task.expect("a thread").path().join("stat");
            let stat = std::fs::read_to_string(stat).expect("a thread's figures");
            // "pid (name) state …": user and system time are the 14th and 15th word.
            let (name, rest) = stat.split_once(") ").expect("a name");
            let name = name.split_once('(').map_or(name, |(_, name)| name);
            let words: Vec<_> = rest.split(' ').collect();
            let ticks = [11, 12].map(|at| words[at].parse::<u64>().expect("ticks"));
            (name.to_owned(), ticks.iter().sum())
        })
        .collect()
}
