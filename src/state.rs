//! State directory: files that a process must find again after a restart. They appear whole or not
//! at all, and only their owner can read them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A directory that exists and belongs to this program.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// Open the directory, or create it (mode 0700).
    ///
    /// # Errors
    /// [`StateError`] names the directory.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StateError> {
        let path = path.into();
        private_directory()
            .create(&path)
            .map_err(|err| StateError::new("create", &path, err))?;
        Ok(Self(path))
    }

    /// Return the path of a file in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Read a file, or return `None` if there is none.
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

    /// Write a file (mode 0600) atomically: a crash at any moment leaves the old or the new
    /// contents.
    ///
    /// # Errors
    /// [`StateError`] names the file.
    pub fn write(&self, name: &str, contents: &[u8]) -> Result<(), StateError> {
        let path = self.path(name);
        self.put(name, contents, |temporary| fs::rename(temporary, &path))
            .map_err(|err| StateError::new("write", &path, err))
    }

    /// Read a file, or create it from `contents` if there is none. Of several processes that do so
    /// at the same time, all get what the first one has written.
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
        let (path, contents) = (self.path(name), contents());
        // Unlike a rename, a link does not replace an existing file.
        let link = |temporary: &Path| {
            fs::hard_link(temporary, &path)?;
            fs::remove_file(temporary)
        };
        match self.put(name, &contents, link) {
            Ok(()) => Ok(contents),
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => self
                .read(name)?
                .ok_or_else(|| StateError::new("read", &path, err)),
            // Some file systems have no links.
            Err(_) => self.write(name, &contents).map(|()| contents),
        }
    }

    /// Write a temporary file, and call `place` to move it to its place.
    fn put(
        &self,
        name: &str,
        contents: &[u8],
        place: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<()> {
        // The process id keeps processes that share the directory apart.
        let temporary = self.path(&format!(".{name}.{}", std::process::id()));
        let mut file = private_file().open(&temporary)?;
        let placed = (|| {
            file.write_all(contents)?;
            file.sync_all()?;
            place(&temporary)?;
            sync_directory(&self.0)
        })();
        if placed.is_err() {
            // It is gone already if syncing the directory failed.
            let _ = fs::remove_file(&temporary);
        }
        placed
    }
}

/// Return a builder of directories that only their owner can access.
fn private_directory() -> fs::DirBuilder {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder
}

/// Return the options for a file that only its owner can read; on systems other than Unix the
/// directory's permissions decide.
fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Make a rename durable. Windows has no such operation for directories.
fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(path)?.sync_all()
    } else {
        Ok(())
    }
}

/// Failure to use a file of the state directory.
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

#[cfg(all(test, unix))]
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
    fn a_file_created_by_another_process_meanwhile_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();

        let mine = state.read_or_write("id", || {
            fs::write(dir.path().join("id"), "theirs").unwrap();
            b"mine".to_vec()
        });

        assert_eq!(mine.unwrap(), b"theirs");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_error_names_the_place_and_the_flag() {
        let file = tempfile::NamedTempFile::new().unwrap();

        let err = StateDir::open(file.path().join("state")).unwrap_err();

        assert!(err.to_string().contains("--state-dir"), "{err}");
        assert!(err.to_string().contains("/state"), "{err}");
    }
}
