//! Proxies between an agent and the edge: other people's programs.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::process::Process;
use super::{eventually, ports, tools};

/// A proxy, and what it has said.
pub struct Back {
    pub addr: SocketAddr,
    pub process: Process,
    directory: TempDir,
}

impl Back {
    /// squid, for CONNECT; with a user name and a password if they are given.
    pub async fn squid(credentials: Option<(&str, &str)>) -> Option<Self> {
        let squid = tools::program("squid")?;
        let (port, directory) = (ports::free(), directory());
        let here = directory.path();
        let access = match credentials {
            None => "http_access allow localhost".to_owned(),
            Some((user, password)) => {
                let helper = here.join("ask");
                let script = format!(
                    "while read user password; do\n\
                     [ \"$user $password\" = \"{user} {password}\" ] && echo OK || echo ERR\ndone\n"
                );
                std::fs::write(&helper, script).expect("a writable directory");
                format!(
                    "auth_param basic program /bin/sh {}\nauth_param basic children 1\n\
                     acl known proxy_auth REQUIRED\nhttp_access allow known",
                    helper.display()
                )
            }
        };
        let config = format!(
            "http_port 127.0.0.1:{port}\npid_filename none\ncache deny all\ncache_log /dev/null\n\
             access_log stdio:{here}/access.log\ncoredump_dir {here}\nnetdb_filename none\n\
             visible_hostname lab\nshutdown_lifetime 0 seconds\nmemory_pools off\n{access}\nhttp_access deny all\n",
            here = here.display()
        );
        std::fs::write(here.join("config"), config).expect("a writable directory");
        let mut command = squid.command();
        command.arg("-N").arg("-f").arg(here.join("config"));
        Some(Self::start(command, port, directory).await)
    }

    /// microsocks, for SOCKS5; with a user name and a password if they are given.
    pub async fn socks(credentials: Option<(&str, &str)>) -> Option<Self> {
        let port = ports::free();
        let mut command = tools::program("microsocks")?.command();
        command.args(["-i", "127.0.0.1", "-p", &port.to_string()]);
        if let Some((user, password)) = credentials {
            command.args(["-u", user, "-P", password]);
        }
        Some(Self::start(command, port, directory()).await)
    }

    /// mitmproxy, which opens TLS with an authority of its own and shows what is inside.
    pub async fn intercepting(script: &Path) -> Option<Self> {
        let (port, directory) = (ports::free(), directory());
        let mut command = tools::mitmdump()?.command();
        command
            .args(["--listen-host", "127.0.0.1", "--ssl-insecure", "--quiet"])
            .args(["--listen-port", &port.to_string()])
            .arg("--set")
            .arg(format!("confdir={}", directory.path().display()))
            .arg("--scripts")
            .arg(script);
        Some(Self::start(command, port, directory).await)
    }

    async fn start(command: tokio::process::Command, port: u16, directory: TempDir) -> Self {
        let process = Process::spawn(command);
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        eventually("a proxy that listens", || async {
            TcpStream::connect(addr).await.is_ok()
        })
        .await;
        Self {
            addr,
            process,
            directory,
        }
    }

    /// Wait until squid has logged a connection to this target.
    pub async fn logged(&self, target: &str) {
        let log = self.directory.path().join("access.log");
        eventually("a line in squid's log", || async {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            log.contains(&format!("CONNECT {target} "))
        })
        .await;
    }
}

/// A directory for a program that gives up its rights when it is started by root.
fn directory() -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let all = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(directory.path(), all).expect("it is ours");
    directory
}
