//! Aliases for the command lines of ngrok, cloudflared, frp and bore. They are translated where the meaning is clear;
//! otherwise an error names the command to type instead.

use std::ffi::OsString;
use std::path::Path;

use qtunnel::Address;

/// Translate the arguments, without the program's name, into those of this program.
///
/// # Errors
/// One line with the command to type instead.
pub fn translate(typed: Vec<OsString>) -> Result<Vec<OsString>, String> {
    let texts: Option<Vec<String>> = typed
        .iter()
        .map(|word| word.to_str().map(str::to_owned))
        .collect();
    // No alias has arguments that are not UTF-8.
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
            "each command opens one tunnel: `qtunnel connect 3000 --subdomain NAME`, and a second one for another port".into(),
        ),
        "config" | "authtoken" | "add-authtoken" | "auth" => Err(
            "`qtunnel login HOST --token TOKEN` stores the token (the edge prints the whole command when it starts)".into(),
        ),
        "version" => ours(vec!["--version".into()]),
        "service" => Err("for systemd there is examples/qtunnel.service: see \"Deploy it\" in the README".into()),
        "update" | "upgrade" => Err("replace the program itself; see \"Upgrade it\" in the README".into()),
        "status" | "diagnose" | "ping" => Err("`qtunnel check` tests each step of the connection to the edge".into()),
        "-c" | "--config" => Err(NO_CONFIG.into()),
        first if first.starts_with("--config=") => Err(NO_CONFIG.into()),
        first if is_address(first) => ours(connect(&words)?),
        first if first.starts_with('-') => match first {
            "-h" | "--help" | "-V" | "--version" => Ok(typed),
            _ => ours(connect(&words)?),
        },
        first if COMMANDS.contains(&first) => Ok(typed),
        first => Err(format!(
            "there is no command {first:?}: qtunnel has {} (to publish port 3000: qtunnel connect 3000)",
            COMMANDS.join(", ")
        )),
    }
}

/// Translate the arguments of `connect`, or of its alias.
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
            // The upstream in cloudflared, the public address in ngrok.
            "--url" => match take() {
                value if is_local(&value) => upstream = Some(value),
                value => return Err(subdomain_advice(&value)),
            },
            "--hostname" | "--domain" | "--fqdn" | "--custom-domain" | "--custom_domains" => {
                return Err(subdomain_advice(&take()));
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
                    "each command opens one tunnel: qtunnel connect 3000 --subdomain NAME".into(),
                );
            }
            "--region" | "--edge-ip-version" | "--protocol" => {
                return Err(format!(
                    "{flag} is not needed here: the edge is your own (--server), and --transport chooses the carrier"
                ));
            }
            "--log" | "--log-level" | "--loglevel" | "--log-format" => {
                return Err(format!(
                    "instead of {flag}: --json prints events for programs, RUST_LOG=qtunnel=debug logs more"
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
                    "each command opens one tunnel: start another `qtunnel connect {flag}`"
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

/// Report whether the next argument is the value of a flag.
fn follows_flag(words: &[String]) -> bool {
    let last = words.last().map_or("", String::as_str);
    last.starts_with("--") && !last.contains('=') && !SWITCHES.contains(&last)
}

/// Describe what to type for an upstream that is not plain HTTP.
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
            "only HTTP is supported yet, {kind} is not: qtunnel connect {port} if a web server listens there"
        ),
    }
}

/// Describe how to request a public name.
fn subdomain_advice(address: &str) -> String {
    let host = address.split("://").last().unwrap_or(address);
    let name = host
        .split(['.', ':', '/'])
        .next()
        .filter(|name| !name.is_empty())
        .unwrap_or("NAME");
    format!("the domain is the edge's, and its first label is yours to choose: --subdomain {name}")
}

/// Report whether an argument is an upstream rather than a misspelt command.
fn is_address(word: &str) -> bool {
    let names_itself = word.contains([':', '/']) || word.bytes().all(|c| c.is_ascii_digit());
    let is_path = word.starts_with(['.', '~']) && Path::new(word).exists();
    (names_itself && !word.starts_with('-') && word.parse::<Address>().is_ok()) || is_path
}

/// Report whether a URL looks like that of an upstream: with a port, an address, or `localhost`.
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
const COMMANDS: &[&str] = &["serve", "connect", "check", "login", "demo", "help"];

/// The flags of `connect` that take no value.
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
    fn aliases_are_translated() {
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
    fn unsupported_commands_fail_with_the_command_to_type() {
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
