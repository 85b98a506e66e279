//! Settings besides flags: the environment, `qtunnel.toml` and the user's configuration.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use qtunnel::proto::Secret;
use serde::{Deserialize, Serialize};

use qtunnel::{StateDir, read_text};

use super::Failure;

/// A configuration file. That of a project may have all settings, that of the user has those that `login` wrote.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// The edge: HOST or HOST:PORT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The token itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// A file with the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// The edge's pin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pin: Option<String>,
    /// A CA file for the edge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The upstream to publish where the command line names none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// The name to request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subdomain: Option<String>,
    /// The `Host` field that the upstream receives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_header: Option<String>,
    /// Protocols besides websocket that visitors may upgrade to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_upgrade: Option<Vec<String>>,
    /// The domain that an edge serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
}

impl Settings {
    /// Read `qtunnel.toml` in the current directory, with the user's configuration as the fallback.
    ///
    /// # Errors
    /// [`Failure`] if a file cannot be read or is invalid.
    pub fn load() -> Result<Self, Failure> {
        let project = Self::read(Path::new("qtunnel.toml"))?;
        let user = match user_file() {
            Some(path) => Self::read(&path)?,
            None => Self::default(),
        };
        Ok(project.or(user))
    }

    /// Fill in missing settings from `other`. The token, pin and CA are those of the file that names the server,
    /// because they belong to it.
    fn or(self, other: Self) -> Self {
        let same_server = self.server.is_none() || self.server == other.server;
        let (token, token_file, pin, ca) = match same_server {
            true => (other.token, other.token_file, other.pin, other.ca),
            false => (None, None, None, None),
        };
        Self {
            server: self.server.or(other.server),
            token: self.token.or(token),
            token_file: self.token_file.or(token_file),
            pin: self.pin.or(pin),
            ca: self.ca.or(ca),
            upstream: self.upstream.or(other.upstream),
            subdomain: self.subdomain.or(other.subdomain),
            host_header: self.host_header.or(other.host_header),
            allow_upgrade: self.allow_upgrade.or(other.allow_upgrade),
            domain: self.domain.or(other.domain),
        }
    }

    /// Read a file; a missing one has no settings.
    fn read(path: &Path) -> Result<Self, Failure> {
        let text = match read_text(path) {
            Ok(text) => text,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(err) => {
                return Err(Failure::usage(format!(
                    "cannot read {}: {err}",
                    path.display()
                )));
            }
        };
        toml::from_str(&text).map_err(|err: toml::de::Error| {
            // Without the text of the line, which may contain the token.
            let before = err.span().and_then(|span| text.get(..span.start));
            let line = before.map_or(1, |before| before.matches('\n').count() + 1);
            Failure::usage(format!(
                "{}, line {line}: {}",
                path.display(),
                err.message().trim()
            ))
        })
    }

    /// Write the user's configuration, readable only by its owner, and return its path.
    ///
    /// # Errors
    /// [`Failure`] if there is no home directory, or the file cannot be written.
    pub fn save(&self) -> Result<PathBuf, Failure> {
        let path = user_file().ok_or_else(|| {
            Failure::usage("there is no home directory to keep the configuration in")
        })?;
        let text = toml::to_string(self).map_err(Failure::running)?;
        let dir = path.parent().unwrap_or(Path::new("."));
        StateDir::open(dir)
            .and_then(|dir| dir.write(USER_FILE, text.as_bytes()))
            .map_err(|err| {
                let cause = err.source().map(ToString::to_string).unwrap_or_default();
                Failure::usage(format!("cannot write {}: {cause}", path.display()))
            })?;
        Ok(path)
    }
}

/// Return the path of the user's configuration.
fn user_file() -> Option<PathBuf> {
    let base = etcetera::choose_base_strategy().ok()?;
    Some(base.config_dir().join("qtunnel").join(USER_FILE))
}

/// Return the state directory: that of the flag, of systemd (`STATE_DIRECTORY`), or of the user.
///
/// # Errors
/// [`Failure`] if there is no home directory.
pub fn state_dir(flag: Option<PathBuf>) -> Result<PathBuf, Failure> {
    if let Some(dir) = flag {
        return Ok(dir);
    }
    // systemd may list several, separated by colons (which other systems have within paths).
    if let Some(dir) = std::env::var("STATE_DIRECTORY")
        .ok()
        .filter(|dir| !dir.is_empty() && cfg!(unix))
    {
        return Ok(PathBuf::from(dir.split(':').next().unwrap_or_default()));
    }
    let base = etcetera::choose_base_strategy().map_err(|_| {
        Failure::usage("there is no home directory to keep state in: use --state-dir")
    })?;
    // On Windows not the roaming profile: on another machine the agent would have the same identity.
    let local = match cfg!(windows) {
        true => base.cache_dir(),
        false => base.state_dir().unwrap_or_else(|| base.data_dir()),
    };
    Ok(local.join("qtunnel"))
}

/// Read a secret from a file, without surrounding white space.
///
/// # Errors
/// [`Failure`] if the file cannot be read, or is empty.
pub fn read_secret(path: &Path) -> Result<String, Failure> {
    let text = read_text(path).map_err(|err| {
        Failure::usage(format!(
            "cannot read the token in {}: {err}",
            path.display()
        ))
    })?;
    let secret = trim_secret(&text);
    if secret.is_empty() {
        return Err(Failure::usage(format!(
            "{} is empty: it should hold a token",
            path.display()
        )));
    }
    Ok(secret.to_owned())
}

/// Remove white space, line ends and a byte order mark around a secret, as files, variables and the clipboard add.
pub fn trim_secret(secret: &str) -> &str {
    secret.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}')
}

/// The file name of the user's configuration.
const USER_FILE: &str = "config.toml";
