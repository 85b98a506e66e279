//! A directory as an upstream: what of it visitors see, and what they do not.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use hyper::Request;
use qtunnel::{Address, Upstream};
use tempfile::TempDir;

use crate::lab::{Lab, Reply, Running, Visitor};

/// A published directory, beside which there is a secret.
struct Site {
    home: TempDir,
    visitor: Visitor,
    _agent: Running,
    _lab: Lab,
}

impl Site {
    async fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("site");
        fs::create_dir(&root).unwrap();
        fs::write(home.path().join("secret"), "secret").unwrap();
        let lab = Lab::start().await;
        let upstream: Address = root.to_str().unwrap().parse().unwrap();
        let agent = lab.agent("site", Upstream::from(upstream)).await;
        Self {
            home,
            visitor: lab.visitor("site"),
            _agent: agent,
            _lab: lab,
        }
    }

    fn root(&self) -> std::path::PathBuf {
        self.home.path().join("site")
    }

    fn file(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn link(&self, target: impl AsRef<Path>, link: &str) {
        symlink(target, self.root().join(link)).unwrap();
    }

    async fn get(&self, path: &str, fields: &[(&str, &str)]) -> Reply {
        let mut request = Request::get(path);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        self.visitor.send(request).await
    }
}

#[tokio::test]
async fn a_link_out_of_the_directory_leads_nowhere() {
    let site = Site::start().await;
    site.file("page.html", "page");
    site.link("page.html", "inside.html");
    site.link("../secret", "relative");
    site.link(site.home.path().join("secret"), "absolute");
    site.link("/proc/self/environ", "environ");
    site.link("..", "up");

    assert_eq!(site.get("/inside.html", &[]).await.text(), "page");
    for path in ["/relative", "/absolute", "/environ", "/up/secret", "/up/"] {
        let reply = site.get(path, &[]).await;

        assert_eq!(reply.status, 404, "{path}: {}", reply.text());
        assert!(!reply.text().contains("secret"), "{path}");
    }
}

#[tokio::test]
async fn what_is_hidden_is_hidden_under_every_name() {
    let site = Site::start().await;
    site.file(".git/config", "secret");
    site.file(".env", "secret");
    site.file(".well-known/security.txt", "contact");
    site.link(".git", "pub");
    site.link(".env", "settings");
    site.link("pub", "again");

    for path in [
        "/.git/config",
        "/%2egit/config",
        "/pub/config",
        "/again/config",
        "/settings",
        "/.env",
    ] {
        assert_eq!(site.get(path, &[]).await.status, 404, "{path}");
    }
    let open = site.get("/.well-known/security.txt", &[]).await;
    assert_eq!(open.text(), "contact");
}

#[tokio::test]
async fn a_pipe_or_a_device_is_no_file_and_holds_nobody_up() {
    let site = Site::start().await;
    let pipe = site.root().join("pipe");
    assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
    site.link("pipe", "link");

    for path in ["/pipe", "/link"] {
        assert_eq!(site.get(path, &[]).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn a_redirection_to_a_directory_stays_on_the_host() {
    let site = Site::start().await;
    site.file("example.com/index.html", "index");

    for (path, location) in [
        ("/example.com", "/example.com/"),
        ("//example.com", "/example.com/"),
        ("///example.com?a=b", "/example.com/?a=b"),
        ("/%5cexample.com", ""),
    ] {
        let reply = site.get(path, &[]).await;

        assert_eq!(reply.header("location"), location, "{path}");
        assert_eq!(reply.status, if location.is_empty() { 404 } else { 307 });
    }
    assert_eq!(site.get("/example.com/", &[]).await.text(), "index");
    site.file("empty/file", "");
    assert_eq!(site.get("/empty/", &[]).await.status, 404);
    assert_eq!(site.get("/", &[]).await.status, 404);
}

#[tokio::test]
async fn ranges_give_the_part_or_the_whole_but_never_a_wrong_one() {
    let site = Site::start().await;
    site.file("file.txt", "0123456789");
    let whole = site.get("/file.txt", &[]).await;
    let tag = whole.header("etag").to_owned();
    let date = whole.header("last-modified").to_owned();

    assert_eq!(whole.header("content-length"), "10");
    assert_eq!(whole.header("content-type"), "text/plain");
    let part = [("range", "bytes=2-4")];
    for (fields, status, text) in [
        (vec![part[0]], 206, "234"),
        (vec![("range", "bytes=-3")], 206, "789"),
        (vec![("range", "bytes=8-")], 206, "89"),
        (vec![("range", "bytes=8-99")], 206, "89"),
        (vec![("range", "bytes=0-1,4-5")], 200, "0123456789"),
        (vec![("range", "bytes=0-1, -1")], 200, "0123456789"),
        (vec![("range", "pages=1-2")], 200, "0123456789"),
        (vec![("range", "bytes=10-")], 416, ""),
        (vec![part[0], ("if-range", &tag)], 206, "234"),
        (vec![part[0], ("if-range", &date)], 206, "234"),
        (vec![part[0], ("if-range", "\"old\"")], 200, "0123456789"),
        (
            vec![("range", "bytes=10-"), ("if-range", "\"old\"")],
            200,
            "0123456789",
        ),
        (vec![("if-none-match", &tag)], 304, ""),
        (vec![("if-modified-since", &date)], 304, ""),
        (vec![("if-match", "\"old\"")], 412, ""),
    ] {
        let reply = site.get("/file.txt", &fields).await;

        assert_eq!((reply.status, reply.text()), (status, text), "{fields:?}");
    }
    let head = site
        .visitor
        .send(Request::head("/file.txt").header("range", "bytes=0-1"))
        .await;
    assert_eq!((head.status, head.header("content-length")), (200, "10"));
    let post = site.visitor.post("/file.txt", "x").await;
    assert_eq!(post.status, 405);
}

#[tokio::test]
async fn a_file_that_shrinks_is_broken_off_and_one_that_grows_is_not_followed() {
    let site = Site::start().await;
    let size = 64 << 20;
    site.file("large", vec![b'x'; size]);
    let mut wire = site.visitor.connect().await;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let host = "site.localhost";
    let request = format!("GET /large HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    wire.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 1024];
    let begun = wire.read(&mut head).await.unwrap();
    assert!(head.starts_with(b"HTTP/1.1 200"));

    fs::File::options()
        .write(true)
        .open(site.root().join("large"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();

    let mut rest = Vec::new();
    // Cut: with an error, or before its length.
    let _ = wire.read_to_end(&mut rest).await;
    assert!(begun + rest.len() < size, "{} bytes", rest.len());
    assert!(!rest.contains(&0), "padded");
}
