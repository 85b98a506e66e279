//! Proxies in front of the edge, with the recipes of `examples/`: other people's programs, other ports.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use hyper::Uri;
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::process::Process;
use super::{Http2, eventually, ports, tools, way};

/// Which proxy.
#[derive(Clone, Copy)]
pub enum Program {
    Nginx,
    Caddy,
    Haproxy,
}

/// A proxy that is still to be started, because it must be told where the edge is.
pub struct Front {
    program: Program,
    port: u16,
    directory: TempDir,
}

/// A proxy that terminates TLS for `*.localhost` and passes everything on to an edge.
pub struct Fronted {
    pub addr: SocketAddr,
    /// What visitors trust.
    pub ca: PathBuf,
    _process: Process,
    _directory: TempDir,
}

impl Front {
    pub fn of(program: Program) -> Self {
        Self {
            program,
            port: ports::free(),
            directory: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    /// Start it in front of the edge's port for plain HTTP; `None` if it is not installed.
    pub async fn start(self, edge: SocketAddr) -> Option<Fronted> {
        let here = self.directory.path();
        let ca = certify(here);
        let (name, recipe) = match self.program {
            Program::Nginx => ("nginx", "nginx.conf"),
            Program::Caddy => ("caddy", "Caddyfile"),
            Program::Haproxy => ("haproxy", "haproxy.cfg"),
        };
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("examples")
            .join(recipe);
        let recipe = std::fs::read_to_string(recipe).expect("the recipe is there");
        let recipe = recipe
            .replace("127.0.0.1:8080", &edge.to_string())
            .replace("/etc/ssl/qtunnel", &here.display().to_string())
            .replace("example.com", "localhost");
        let (config, arguments): (_, &[&str]) = match self.program {
            Program::Nginx => (self.nginx(&recipe), &["-e", "stderr", "-c"]),
            Program::Caddy => (
                self.caddy(&recipe),
                &["run", "--adapter", "caddyfile", "--config"],
            ),
            Program::Haproxy => (self.haproxy(&recipe), &["-db", "-f"]),
        };
        let path = here.join("config");
        std::fs::write(&path, config).expect("a writable directory");
        let mut command = tools::program(name)?.command();
        command.args(arguments).arg(path).env("HOME", here);
        command
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_DATA_HOME");
        let process = Process::spawn(command);
        let addr = SocketAddr::from(([127, 0, 0, 1], self.port));
        eventually("a proxy that listens", || async {
            TcpStream::connect(addr).await.is_ok()
        })
        .await;
        Some(Fronted {
            addr,
            ca,
            _process: process,
            _directory: self.directory,
        })
    }

    /// The recipe is a part of `http`; what is around it is the distribution's.
    fn nginx(&self, recipe: &str) -> String {
        let (port, here) = (self.port, self.directory.path().display());
        let recipe = substitute(recipe, "listen 443 ", &format!("listen 127.0.0.1:{port} "));
        format!(
            "daemon off; master_process off; pid {here}/pid;\nevents {{}}\nhttp {{\n\
             access_log off; client_body_temp_path {here}/body; proxy_temp_path {here}/proxy;\n\
             fastcgi_temp_path {here}/fastcgi; uwsgi_temp_path {here}/uwsgi; scgi_temp_path {here}/scgi;\n\
             {recipe}}}\n"
        )
    }

    fn caddy(&self, recipe: &str) -> String {
        let port = self.port;
        let options = format!(
            "{{\n\tadmin off\n\tauto_https disable_redirects\n\thttps_port {port}\n\tdefault_bind 127.0.0.1\n\tservers"
        );
        substitute(recipe, "{\n\tservers", &options)
    }

    fn haproxy(&self, recipe: &str) -> String {
        let bind = format!("bind 127.0.0.1:{} ", self.port);
        substitute(recipe, "bind :443 ", &bind)
    }
}

impl Fronted {
    /// Where agents find it.
    pub fn websocket(&self) -> Uri {
        let url = format!("wss://{}:{}", way::host(), self.addr.port());
        url.parse().expect("a valid address")
    }

    /// Connect a visitor of the tunnel `name` over TLS and HTTP/2.
    pub async fn http2(&self, name: &str) -> Http2 {
        Http2::connect(self.addr, &format!("{name}.localhost"), &self.ca).await
    }
}

/// Replace what must be there, or the test would not test the recipe.
fn substitute(recipe: &str, from: &str, to: &str) -> String {
    assert!(
        recipe.contains(from),
        "no {from:?} in the recipe:\n{recipe}"
    );
    recipe.replace(from, to)
}

/// Make the certificate that the recipes name, and return what to trust.
fn certify(directory: &Path) -> PathBuf {
    let names = ["localhost", "blog.localhost", "chat.localhost"].map(String::from);
    let made = rcgen::generate_simple_self_signed(names).expect("a key");
    let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let path = directory.join("chain.pem");
    for (name, content) in [
        ("chain.pem", &chain),
        ("key.pem", &key),
        ("both.pem", &format!("{chain}{key}")),
    ] {
        std::fs::write(directory.join(name), content).expect("a writable directory");
    }
    path
}
