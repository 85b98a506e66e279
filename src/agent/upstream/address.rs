//! Parsing and formatting of upstream addresses.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// An upstream's address: `3000`, `:3000`, `host:3000`, `http://…`, `https://…`,
/// `https+insecure://…`, `h2c://…`, `unix:/path`, or a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A server that is reached over a socket.
    Target(Target),
    /// A directory whose files are served.
    Directory(PathBuf),
}

/// A server that speaks HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// HTTP/1.1 in clear text.
    Http {
        /// A host name or address.
        host: String,
        /// The port.
        port: u16,
    },
    /// HTTP/2 or HTTP/1.1 over TLS.
    Https {
        /// A host name or address.
        host: String,
        /// The port.
        port: u16,
        /// The certificate is verified.
        verify: bool,
    },
    /// HTTP/2 in clear text with prior knowledge (RFC 9113 §3.3).
    H2c {
        /// A host name or address.
        host: String,
        /// The port.
        port: u16,
    },
    /// HTTP/1.1 over a Unix domain socket.
    Unix(PathBuf),
}

impl Target {
    /// Return the authority of the upstream, for a rewritten `Host`.
    pub fn authority(&self) -> String {
        match self {
            Self::Http { host, port } => with_port(host, *port, 80),
            Self::Https { host, port, .. } => with_port(host, *port, 443),
            Self::H2c { host, port } => with_port(host, *port, 80),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }
}

/// Format a host, with the port unless it is the default one.
fn with_port(host: &str, port: u16, default: u16) -> String {
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    if port == default {
        host
    } else {
        format!("{host}:{port}")
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.is_empty() {
            return Err(AddressError::Empty);
        }
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path {
                "" => Err(AddressError::Empty),
                path => Ok(Self::Target(Target::Unix(path.into()))),
            };
        }
        if let Some(path) = text.strip_prefix("file://") {
            return directory(path);
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            return Target::from_url(scheme, rest).map(Self::Target);
        }
        let digits = text.strip_prefix(':').unwrap_or(text);
        if !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit()) {
            let port = port(digits)?;
            return Ok(Self::Target(Target::Http {
                host: "localhost".into(),
                port,
            }));
        }
        if let Some(address) = server_with_path(text)? {
            return Ok(address);
        }
        let looks_like_path = text.starts_with(['/', '.', '~']) || text.ends_with('/');
        if looks_like_path || std::path::Path::new(text).is_dir() {
            return directory(text);
        }
        // Also with a backslash: the Windows path `C:\site` is not a host and port either.
        if text.contains(['/', '\\']) {
            return Err(AddressError::NotADirectory(text.into()));
        }
        let (host, port) = host_port(text, None)?;
        Ok(Self::Target(Target::Http { host, port }))
    }
}

impl Target {
    /// Parse the part of a URL after its scheme.
    fn from_url(scheme: &str, rest: &str) -> Result<Self, AddressError> {
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            let server = authority.split(['/', '?', '#']).next().unwrap_or_default();
            return Err(AddressError::Path(format!("{scheme}://{server}")));
        }
        if authority.contains('@') {
            return Err(AddressError::UserInfo);
        }
        match scheme.to_ascii_lowercase().as_str() {
            "http" => host_port(authority, Some(80)).map(|(host, port)| Self::Http { host, port }),
            "h2c" => host_port(authority, Some(80)).map(|(host, port)| Self::H2c { host, port }),
            "https" => host_port(authority, Some(443)).map(|(host, port)| Self::Https {
                host,
                port,
                verify: true,
            }),
            "https+insecure" => host_port(authority, Some(443)).map(|(host, port)| Self::Https {
                host,
                port,
                verify: false,
            }),
            "tcp" | "udp" | "ssh" | "tls" => Err(AddressError::NotHttp(scheme.to_owned())),
            other => Err(AddressError::Scheme(other.to_owned())),
        }
    }
}

/// Parse a port, or a host and port, followed by a slash, unless a directory of that name exists. `None` if it is
/// something else.
fn server_with_path(text: &str) -> Result<Option<Address>, AddressError> {
    let Some((server, path)) = text.split_once('/') else {
        return Ok(None);
    };
    let port = server.rsplit(':').next().unwrap_or(server);
    let is_server = !port.is_empty() && port.bytes().all(|c| c.is_ascii_digit());
    match is_server && !std::path::Path::new(text).exists() {
        true if path.is_empty() => server.parse().map(Some),
        true => Err(AddressError::Path(server.into())),
        false => Ok(None),
    }
}

/// Return a directory as an address, if it exists.
fn directory(text: &str) -> Result<Address, AddressError> {
    let path = PathBuf::from(text);
    if path.is_dir() {
        Ok(Address::Directory(path))
    } else {
        Err(AddressError::NotADirectory(path))
    }
}

/// Parse a host and port. The port may be missing if there is a default.
fn host_port(text: &str, default: Option<u16>) -> Result<(String, u16), AddressError> {
    let (host, digits) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest
                .split_once(']')
                .ok_or_else(|| AddressError::Host(text.into()))?;
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(AddressError::Host(text.into()));
            }
            (host, rest.strip_prefix(':').filter(|_| !rest.is_empty()))
        }
        None => match text.rsplit_once(':') {
            Some((host, _)) if host.contains(':') => {
                return Err(AddressError::Brackets(text.into()));
            }
            Some((host, digits)) => (host, Some(digits)),
            None => (text, None),
        },
    };
    let port = match (digits, default) {
        (Some(digits), _) => port(digits)?,
        (None, Some(default)) => default,
        (None, None) => return Err(AddressError::NoPort(text.into())),
    };
    let valid = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_' | b':');
    if host.is_empty() || !host.bytes().all(valid) {
        return Err(AddressError::Host(text.into()));
    }
    Ok((host.to_owned(), port))
}

/// Parse a port from 1 to 65535.
fn port(digits: &str) -> Result<u16, AddressError> {
    match digits.parse() {
        Ok(0) | Err(_) => Err(AddressError::Port(digits.into())),
        Ok(port) => Ok(port),
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target(target) => target.fmt(f),
            Self::Directory(path) => path.display().fmt(f),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { .. } => write!(f, "http://{}", self.authority()),
            Self::Https { verify: true, .. } => write!(f, "https://{}", self.authority()),
            Self::Https { verify: false, .. } => write!(f, "https+insecure://{}", self.authority()),
            Self::H2c { .. } => write!(f, "h2c://{}", self.authority()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The error of parsing an upstream address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The text is empty.
    #[error(
        "it is empty: give a port such as 3000, an address such as 192.168.1.5:8080, or a directory"
    )]
    Empty,
    /// The port is not a number from 1 to 65535.
    #[error("{0:?} is not a port (1 to 65535)")]
    Port(String),
    /// The port is missing.
    #[error(
        "{0:?} has no port: write {0}:PORT, or http://{0} for port 80 (and ./{0} if it is a directory)"
    )]
    NoPort(String),
    /// The host is invalid.
    #[error("{0:?} is not a host and port")]
    Host(String),
    /// An IPv6 address is not in brackets.
    #[error("{0:?} is ambiguous: write IPv6 addresses in brackets, as [::1]:3000")]
    Brackets(String),
    /// The scheme is unknown.
    #[error("the scheme {0:?} is not known: use http, https, https+insecure, h2c, unix or none")]
    Scheme(String),
    /// The scheme is that of a protocol other than HTTP.
    #[error("only HTTP is supported yet, {0} is not")]
    NotHttp(String),
    /// The URL has a path.
    #[error("an upstream cannot have a path, because requests keep theirs: write {0}")]
    Path(String),
    /// The URL has a user name or password.
    #[error("an upstream cannot have a user name or password")]
    UserInfo,
    /// The path is not that of a directory.
    #[error("{} is not a directory", .0.display())]
    NotADirectory(PathBuf),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, AddressError> {
        text.parse::<Address>().map(|address| address.to_string())
    }

    #[test]
    fn every_documented_form_is_parsed() {
        assert_eq!(parse("3000").unwrap(), "http://localhost:3000");
        assert_eq!(parse(":3000").unwrap(), "http://localhost:3000");
        assert_eq!(parse("nas.lan:80").unwrap(), "http://nas.lan");
        assert_eq!(parse("[::1]:3000").unwrap(), "http://[::1]:3000");
        assert_eq!(parse("http://10.0.0.5").unwrap(), "http://10.0.0.5");
        assert_eq!(
            parse("https://example.org:8443/").unwrap(),
            "https://example.org:8443"
        );
        assert_eq!(
            parse("https+insecure://[fe80::1]").unwrap(),
            "https+insecure://[fe80::1]"
        );
        assert_eq!(
            parse("h2c://localhost:50051").unwrap(),
            "h2c://localhost:50051"
        );
        assert_eq!(parse("unix:/run/app.sock").unwrap(), "unix:/run/app.sock");
        assert_eq!(parse("/").unwrap(), "/");
        assert_eq!(parse("file:///").unwrap(), "/");
        assert_eq!(parse("3000/").unwrap(), "http://localhost:3000");
        assert_eq!(parse("nas.lan:80/").unwrap(), "http://nas.lan");
    }

    #[test]
    fn other_forms_are_refused_with_a_reason() {
        assert_eq!(parse(""), Err(AddressError::Empty));
        assert_eq!(parse("0"), Err(AddressError::Port("0".into())));
        assert_eq!(parse("65536"), Err(AddressError::Port("65536".into())));
        assert_eq!(
            parse("localhost"),
            Err(AddressError::NoPort("localhost".into()))
        );
        assert_eq!(
            parse("::1:3000"),
            Err(AddressError::Brackets("::1:3000".into()))
        );
        assert_eq!(parse("ftp://x"), Err(AddressError::Scheme("ftp".into())));
        assert_eq!(
            parse("http://x/path"),
            Err(AddressError::Path("http://x".into()))
        );
        assert_eq!(
            parse("localhost:3000/path"),
            Err(AddressError::Path("localhost:3000".into()))
        );
        assert_eq!(parse("http://u:p@x"), Err(AddressError::UserInfo));
        assert_eq!(parse("a b:80"), Err(AddressError::Host("a b:80".into())));
        for nowhere in ["./nowhere", r".\nowhere", r"C:\nowhere", "C:/nowhere"] {
            assert_eq!(
                parse(nowhere),
                Err(AddressError::NotADirectory(nowhere.into()))
            );
        }
    }
}
