//! What people type who know ngrok, cloudflared, frp or bore: it is done where it is clear, and otherwise they are
//! told what to type here.

use std::ffi::OsString;
use std::path::Path;

use qtunnel::Address;

/// Take a command line as it was typed, without the program's name, and return it in our own words.
///
/// # Errors
/// One line that says what to type instead.
pub fn translate(typed: Vec<OsString>) -> Result<Vec<OsString>, String> {
    let texts: Option<Vec<String>> = typed
        .iter()
        .map(|word| word.to_str().map(str::to_owned))
        .collect();
    // Others' commands have no such words.
    let Some(words) = texts else { return Ok(typed) };
    let Some(first) = words.first().map(String::as_str) else {
        return Ok(typed);
    };
    let rest = &words[1..];
    let ours = |words: Vec<String>| Ok(words.into_iter().map(OsString::from).collect());
    match first {
        "connect" => ours(connect(rest)?),
        "http" => ours(connect(&words)?),
        "https" | "tcp" | "udp" | "tls" | "ssh" | "stcp" | "xtcp" => Err(other_kind(first, rest)),
        "tunnel" => match rest.first().map(String::as_str) {
            None | Some("run" | "create" | "login" | "list" | "route" | "delete" | "cleanup") => {
                Err("there are no tunnels to create or to run by name: `qtunnel connect 3000 --subdomain NAME` opens one".into())
            }
            Some(_) => ours(connect(rest)?),
        },
        "local" => ours(connect(rest)?),
        "server" => Err("the public side is `qtunnel serve`".into()),
        "start" | "start-all" | "run" => Err(
            "there is one tunnel for each command: `qtunnel connect 3000 --subdomain NAME`, and another one for another port".into(),
        ),
        "config" | "authtoken" | "add-authtoken" | "auth" => Err(
            "the token is remembered by `qtunnel login HOST --token TOKEN` (the edge prints the whole line at its start)".into(),
        ),
        "version" => ours(vec!["--version".into()]),
        "service" => Err("for systemd there is examples/qtunnel.service: see \"Deploy it\" in the README".into()),
        "update" | "upgrade" => Err("replace the program itself; see \"Upgrade it\" in the README".into()),
        "status" | "diagnose" | "ping" => Err("`qtunnel check` tries each part of the way to the edge".into()),
        "-c" | "--config" => Err(NO_CONFIG.into()),
        first if first.starts_with("--config=") => Err(NO_CONFIG.into()),
        first if is_address(first) => ours(connect(&words)?),
        first if first.starts_with('-') => match first {
            "-h" | "--help" | "-V" | "--version" => Ok(typed),
            _ => ours(connect(&words)?),
        },
        first if OURS.contains(&first) => Ok(typed),
        first => Err(format!(
            "there is no command {first:?}: qtunnel has {} (to publish port 3000: qtunnel connect 3000)",
            OURS.join(", ")
        )),
    }
}

/// Put what stands behind `connect`, or behind another's word for it, into our words.
fn connect(words: &[String]) -> Result<Vec<String>, String> {
    let mut ours = vec!["connect".to_owned()];
    let mut upstream = None;
    let mut words = words.iter().cloned().peekable();
    if let Some(kind) = words.peek().cloned() {
        match kind.as_str() {
            "http" => {
                words.next();
                if words.peek().is_none() {
                    return Err("which port? For example: qtunnel connect 3000".into());
                }
            }
            "https" | "tcp" | "udp" | "tls" | "ssh" => {
                return Err(other_kind(&kind, &words.skip(1).collect::<Vec<_>>()));
            }
            _ => {}
        }
    }
    while let Some(word) = words.next() {
        if word == "--" {
            ours.push(word);
            ours.extend(words);
            break;
        }
        let (flag, mut value) = match word.split_once('=') {
            Some((flag, value)) if flag.starts_with("--") => {
                (flag.to_owned(), Some(value.to_owned()))
            }
            _ => (word.clone(), None),
        };
        let mut take = || value.take().or_else(|| words.next()).unwrap_or_default();
        match flag.as_str() {
            // cloudflared means the upstream, ngrok the public address.
            "--url" => match take() {
                value if is_local(&value) => upstream = Some(value),
                value => return Err(subdomain(&value)),
            },
            "--hostname" | "--domain" | "--fqdn" | "--custom-domain" | "--custom_domains" => {
                return Err(subdomain(&take()));
            }
            "--name" | "--sd" => ours.extend(["--subdomain".into(), take()]),
            "--authtoken" | "--secret" | "--auth-token" => ours.extend(["--token".into(), take()]),
            "--to" | "--server-addr" | "--server_addr" => ours.extend(["--server".into(), take()]),
            "--port" | "-p" | "--local-port" | "--local_port" | "-l" => upstream = Some(take()),
            "--host" | "--local-host" | "--local-ip" => {
                return Err("the upstream is one word: qtunnel connect HOST:PORT".into());
            }
            "-c" | "--config" => return Err(NO_CONFIG.into()),
            "--all" => {
                return Err(
                    "there is one tunnel for each command: qtunnel connect 3000 --subdomain NAME"
                        .into(),
                );
            }
            "--region" | "--edge-ip-version" | "--protocol" => {
                return Err(format!(
                    "{flag} is not needed here: the edge is your own (--server), and --transport says over what it is reached"
                ));
            }
            "--log" | "--log-level" | "--loglevel" | "--log-format" => {
                return Err(format!(
                    "instead of {flag}: --json writes events for programs, RUST_LOG=qtunnel=debug tells more"
                ));
            }
            "--basic-auth" | "--auth" | "--oauth" | "--oidc" | "--cidr-allow" | "--cidr-deny"
            | "--ip-restriction" => {
                return Err(format!(
                    "{flag} does not exist here: visitors are not checked yet. Use --random, and a login in the upstream"
                ));
            }
            "--inspect"
            | "--web-addr"
            | "--traffic-policy-file"
            | "--traffic-policy"
            | "--scheme" => {
                return Err(format!("{flag} does not exist here; leave it out"));
            }
            "--no-tls-verify" | "--insecure" => {
                return Err(format!(
                    "instead of {flag}: write the upstream as https+insecure://HOST:PORT"
                ));
            }
            "--http-host-header" | "--host_header_rewrite" => {
                ours.extend(["--host-header".into(), take()])
            }
            flag if !flag.starts_with('-') && upstream.is_none() && !follows_flag(&ours) => {
                upstream = Some(word);
            }
            flag if is_address(flag) && !follows_flag(&ours) => {
                return Err(format!(
                    "there is one tunnel for each command: start another `qtunnel connect {flag}`"
                ));
            }
            _ => ours.push(word),
        }
    }
    if let Some(upstream) = upstream {
        ours.insert(1, upstream);
    }
    Ok(ours)
}

/// Report whether the next word is the value of a flag.
fn follows_flag(words: &[String]) -> bool {
    let last = words.last().map_or("", String::as_str);
    last.starts_with("--") && !last.contains('=') && !SWITCHES.contains(&last)
}

/// Say what to type for something that is not HTTP, or HTTP over TLS.
fn other_kind(kind: &str, rest: &[String]) -> String {
    let port = rest
        .iter()
        .find(|word| !word.starts_with('-'))
        .map_or("3000", String::as_str);
    match kind {
        "https" => {
            let host = match port.bytes().all(|c| c.is_ascii_digit()) {
                true => format!("localhost:{port}"),
                false => port.trim_start_matches("https://").to_owned(),
            };
            format!("for an upstream that speaks TLS: qtunnel connect https://{host}")
        }
        kind => format!(
            "only HTTP passes as yet, {kind} does not: qtunnel connect {port} if a web server listens there"
        ),
    }
}

/// Say how a public name is asked for.
fn subdomain(address: &str) -> String {
    let host = address.split("://").last().unwrap_or(address);
    let name = host
        .split(['.', ':', '/'])
        .next()
        .filter(|name| !name.is_empty())
        .unwrap_or("NAME");
    format!("the domain is the edge's, and its first label is yours to choose: --subdomain {name}")
}

/// Report whether a word is an upstream rather than a misspelt command.
fn is_address(word: &str) -> bool {
    let names_itself = word.contains([':', '/']) || word.bytes().all(|c| c.is_ascii_digit());
    let is_path = word.starts_with(['.', '~']) && Path::new(word).exists();
    (names_itself && !word.starts_with('-') && word.parse::<Address>().is_ok()) || is_path
}

/// Report whether a URL leads to this machine or its network, as an upstream's does.
fn is_local(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or(rest);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|c| c.is_ascii_digit()) => (host, Some(port)),
        _ => (authority, None),
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    port.is_some()
        || host == "localhost"
        || bare.parse::<std::net::IpAddr>().is_ok()
        || (!host.is_empty() && host.bytes().all(|c| c.is_ascii_digit()))
        || url.starts_with("unix:")
}

/// The commands of this program.
const OURS: &[&str] = &["serve", "connect", "check", "login", "demo", "help"];

/// The flags of `connect` without a value.
const SWITCHES: &[&str] = &["--random", "--json", "--exit-on-failure"];

const NO_CONFIG: &str = "there is no flag for a configuration file: qtunnel.toml in the current directory is read \
                         (upstream, subdomain, server, …), or write qtunnel connect 3000";

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(line: &str) -> Result<String, String> {
        let words = line.split_whitespace().map(OsString::from).collect();
        let ours = translate(words)?;
        Ok(ours.join(std::ffi::OsStr::new(" ")).into_string().unwrap())
    }

    #[test]
    fn what_is_meant_is_done() {
        for (line, ours) in [
            ("3000", "connect 3000"),
            ("localhost:3000 --json", "connect localhost:3000 --json"),
            ("http 3000", "connect 3000"),
            (
                "http localhost:3000 --subdomain=blog",
                "connect localhost:3000 --subdomain=blog",
            ),
            (
                "http --subdomain blog 3000",
                "connect 3000 --subdomain blog",
            ),
            ("connect http 3000", "connect 3000"),
            ("connect --random 3000", "connect 3000 --random"),
            (
                "connect --server host 3000 --json",
                "connect 3000 --server host --json",
            ),
            ("connect 3000 --authtoken T", "connect 3000 --token T"),
            (
                "local 3000 --to example.com --secret S",
                "connect 3000 --server example.com --token S",
            ),
            (
                "tunnel --url http://localhost:3000",
                "connect http://localhost:3000",
            ),
            ("tunnel --url=localhost:3000", "connect localhost:3000"),
            (
                "--port 3000 --subdomain blog",
                "connect 3000 --subdomain blog",
            ),
            ("version", "--version"),
            ("--help", "--help"),
            ("serve --domain example.com", "serve --domain example.com"),
            ("login example.com --token t", "login example.com --token t"),
        ] {
            assert_eq!(typed(line).as_deref(), Ok(ours), "{line}");
        }
    }

    #[test]
    fn what_is_not_there_is_said_with_what_to_type() {
        for (line, says) in [
            ("connect http", "qtunnel connect 3000"),
            ("connect tcp 22", "only HTTP"),
            ("tcp 22", "qtunnel connect 22"),
            ("https 3000", "qtunnel connect https://localhost:3000"),
            ("http 3000 --url https://blog.ngrok.app", "--subdomain blog"),
            (
                "connect 3000 --hostname blog.example.com",
                "--subdomain blog",
            ),
            ("start --all", "qtunnel connect 3000"),
            ("config add-authtoken T", "qtunnel login"),
            ("-c frpc.toml", "qtunnel.toml"),
            ("tunnel run blog", "qtunnel connect 3000"),
            ("server", "qtunnel serve"),
            ("connect 3000 4000", "qtunnel connect 4000"),
            ("connect 3000 --basic-auth u:p", "a login in the upstream"),
            ("frobnicate", "frobnicate"),
        ] {
            let said = typed(line).unwrap_err();
            assert!(said.contains(says), "{line}: {said}");
            assert!(said.lines().count() == 1 && said.len() < 200, "{said}");
        }
    }
}
