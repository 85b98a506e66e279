//! The state directory: what a process must find again after a restart. Files appear whole or not
//! at all, and secrets are readable by their owner only.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A directory that exists and belongs to this program.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// Open the directory, and make it (mode 0700) where it is missing.
    ///
    /// # Errors
    /// [`StateError`] names the directory.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StateError> {
        let path = path.into();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|err| StateError::new("create", &path, err))?;
        Ok(Self(path))
    }

    /// Return the path of a file in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Read a file, or answer `None` if there is none.
    ///
    /// # Errors
    /// [`StateError`] names the file.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.path(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(StateError::new("read", &path, err)),
        }
    }

    /// Write a file (mode 0600) so that a crash at any moment leaves the old one or the new one.
    ///
    /// # Errors
    /// [`StateError`] names the file.
    pub fn write(&self, name: &str, contents: &[u8]) -> Result<(), StateError> {
        let path = self.path(name);
        // The process id keeps two processes that share the directory out of each other's way.
        let temporary = self.path(&format!(".{name}.{}", std::process::id()));
        let written = (|| {
            let mut options = OpenOptions::new();
            let mut file = options
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(contents)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.0)?.sync_all()
        })();
        written.map_err(|err| StateError::new("write", &path, err))
    }

    /// Read a file, or make it from `contents` if there is none.
    ///
    /// # Errors
    /// [`StateError`] names the file.
    pub fn read_or_write(
        &self,
        name: &str,
        contents: impl FnOnce() -> Vec<u8>,
    ) -> Result<Vec<u8>, StateError> {
        if let Some(found) = self.read(name)? {
            return Ok(found);
        }
        let contents = contents();
        self.write(name, &contents)?;
        Ok(contents)
    }
}

/// A file of the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {} (choose another place with --state-dir)", path.display())]
pub struct StateError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl StateError {
    fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self {
            action,
            path: path.into(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_made_once_and_only_its_owner_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path().join("deep/state")).unwrap();

        let first = state.read_or_write("key", || b"one".to_vec()).unwrap();
        let second = state.read_or_write("key", || b"two".to_vec()).unwrap();

        assert_eq!(
            (first.as_slice(), second.as_slice()),
            (b"one".as_slice(), b"one".as_slice())
        );
        let mode = fs::metadata(state.path("key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn an_error_names_the_place_and_the_flag() {
        let file = tempfile::NamedTempFile::new().unwrap();

        let err = StateDir::open(file.path().join("state")).unwrap_err();

        assert!(err.to_string().contains("--state-dir"), "{err}");
        assert!(err.to_string().contains("/state"), "{err}");
    }
}
