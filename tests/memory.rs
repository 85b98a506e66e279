//! Memory that a burst has needed, in a process like the program: with its allocator and its runtime.

#![cfg(target_os = "linux")]

use std::time::Duration;

use tokio::time::sleep;
use tokio::time::timeout;

#[global_allocator]
static ALLOCATOR: qtunnel::Allocator = qtunnel::Allocator;

#[test]
fn an_idle_process_returns_what_a_burst_needed_within_a_minute() {
    let runtime = qtunnel::runtime().unwrap();
    let before = resident();
    let burst: Vec<_> = (0..20_000).map(|_| vec![7_u8; 4_000]).collect();
    assert!(resident() >= before + (64 << 20));

    drop(burst);

    let returned = runtime.block_on(async {
        timeout(Duration::from_secs(60), async {
            while resident() > before + (8 << 20) {
                sleep(Duration::from_millis(100)).await;
            }
        })
        .await
    });
    let left = resident().saturating_sub(before) >> 20;
    assert!(returned.is_ok(), "{left} MiB are left");
}

/// The memory that the process has, in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("a Linux process");
    let pages = statm.split(' ').nth(1).expect("a second field");
    pages.parse::<usize>().expect("a number") * 4096
}
