//! Git over smart HTTP: long uploads without a length, long downloads, and a client that checks
//! every byte.

use std::path::Path;

use crate::lab::process::{Process, succeed};
use crate::lab::tools::{self, Tool};
use crate::lab::{Lab, way};
use qtunnel::{Address, Carrier, Upstream};
use tokio::process::Command;

/// 24 files of 4 MiB: about 100 MB.
const FILES: u64 = 24;
const FILE: u64 = 4 << 20;

on_each_carrier!(a_repository_of_100_mb_is_pushed_and_cloned);
async fn a_repository_of_100_mb_is_pushed_and_cloned(carrier: Carrier) {
    let (Some(git), Some(python)) = (tools::program("git"), tools::python()) else {
        return;
    };
    let lab = Lab::start().await.over(carrier);
    let home = tempfile::tempdir().unwrap();
    let here = |name: &str| home.path().join(name);
    succeed(command(
        &git,
        &lab,
        home.path(),
        &["init", "-q", "--bare", "served/big.git"],
    ))
    .await;
    let mut server = python.script("git_server.py");
    server.arg(here("served"));
    let mut server = Process::spawn(server);
    let upstream: Address = format!("127.0.0.1:{}", server.port().await)
        .parse()
        .unwrap();
    let _agent = lab.agent("git", Upstream::from(upstream)).await;
    succeed(command(
        &git,
        &lab,
        home.path(),
        &["init", "-q", "-b", "main", "work"],
    ))
    .await;
    let files = way::large(FILES * FILE) / FILE;
    commit(&git, &lab, &here("work"), files).await;
    let http = format!("http://git.localhost:{}/big.git", lab.http.port());
    let https = format!("https://git.localhost:{}/big.git", lab.https.port());

    succeed(command(
        &git,
        &lab,
        &here("work"),
        &["push", "-q", &http, "main"],
    ))
    .await;
    succeed(command(
        &git,
        &lab,
        home.path(),
        &["clone", "-q", "-b", "main", &https, "copy"],
    ))
    .await;
    succeed(command(
        &git,
        &lab,
        &here("copy"),
        &["fsck", "--full", "--strict"],
    ))
    .await;
    assert_eq!(
        head(&git, &lab, &here("copy")).await,
        head(&git, &lab, &here("work")).await
    );

    commit(&git, &lab, &here("copy"), 1).await;
    succeed(command(
        &git,
        &lab,
        &here("copy"),
        &["push", "-q", &https, "main"],
    ))
    .await;
    succeed(command(
        &git,
        &lab,
        &here("work"),
        &["pull", "-q", "--ff-only", &http, "main"],
    ))
    .await;
    assert_eq!(
        head(&git, &lab, &here("work")).await,
        head(&git, &lab, &here("copy")).await
    );
}

/// Commit some files that cannot be compressed.
async fn commit(git: &Tool, lab: &Lab, repository: &Path, files: u64) {
    for number in 0..files {
        let mut noise = vec![0; FILE as usize];
        aws_lc_rs::rand::fill(&mut noise).expect("the operating system has random numbers");
        std::fs::write(repository.join(format!("{number}.bin")), noise).unwrap();
    }
    succeed(command(git, lab, repository, &["add", "."])).await;
    succeed(command(
        git,
        lab,
        repository,
        &["commit", "-q", "-m", "add noise"],
    ))
    .await;
}

async fn head(git: &Tool, lab: &Lab, repository: &Path) -> String {
    succeed(command(git, lab, repository, &["rev-parse", "HEAD"])).await
}

/// Run git as on a machine without any configuration. Nothing is compressed: it would take long and
/// gain nothing.
fn command(git: &Tool, lab: &Lab, directory: &Path, arguments: &[&str]) -> Command {
    let mut command = git.command();
    command
        .current_dir(directory)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_SSL_CAINFO", lab.ca())
        .args(["-c", "user.name=Lab", "-c", "user.email=lab@localhost"])
        .args(["-c", "core.compression=0", "-c", "core.bigFileThreshold=1m"])
        .args(arguments);
    command
}
