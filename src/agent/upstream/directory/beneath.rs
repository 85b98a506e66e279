//! Opening files beneath a directory without escaping from it through symbolic links (as `openat2` with
//! `RESOLVE_BENEATH`).

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::SystemTime;

/// A file or directory beneath the root.
pub enum Entry {
    /// A regular file, open for reading.
    File(File),
    /// A directory.
    Directory,
}

/// Metadata of an [`Entry`].
#[derive(Debug, Clone, Copy)]
pub struct FileInfo {
    /// Set for a directory, not for a regular file.
    pub is_directory: bool,
    /// The time of the last modification, where it is known.
    pub modified: Option<SystemTime>,
    /// The length in bytes.
    pub length: u64,
}

impl Entry {
    /// Read the metadata of the open file.
    ///
    /// # Errors
    /// [`io::Error`] of the system.
    pub fn info(&self) -> io::Result<FileInfo> {
        let Self::File(file) = self else {
            return Ok(FileInfo {
                is_directory: true,
                modified: None,
                length: 0,
            });
        };
        let metadata = file.metadata()?;
        Ok(FileInfo {
            is_directory: false,
            modified: metadata.modified().ok(),
            length: metadata.len(),
        })
    }
}

/// Report whether a name is hidden at this depth below the root. Dotfiles are, except for `/.well-known/` (RFC
/// 8615).
pub fn is_hidden(name: &str, depth: usize) -> bool {
    let shown = name.trim_start_matches(is_ignored_by_hfs);
    shown.starts_with('.') && !(depth == 0 && name == ".well-known")
}

/// Report whether HFS+ ignores a character when it compares names: with one in front, `.git` is still `.git`.
fn is_ignored_by_hfs(character: char) -> bool {
    matches!(
        character,
        '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}'
    )
}

/// Report whether Windows may open something else than a file of exactly this name: a device (`NUL`), an alternate
/// data stream (`page::$DATA`), a file without the trailing dots and blanks, or one with a longer name (`GIT~1`).
/// Elsewhere such names are like any other.
#[cfg(any(not(unix), test))]
fn is_ambiguous_on_windows(name: &str) -> bool {
    let is_reserved = |character: char| character < ' ' || r#"<>:"/\|?*"#.contains(character);
    let (base, extension) = name.split_once('.').unwrap_or((name, ""));
    name.contains(is_reserved)
        || name.ends_with(['.', ' '])
        || is_device(base)
        || is_short_name(base, extension)
}

/// Report whether the part of a name before its first dot is that of a device: any extension may follow.
#[cfg(any(not(unix), test))]
fn is_device(base: &str) -> bool {
    let base = base.trim_end_matches(' ').to_uppercase();
    let number = base
        .strip_prefix("COM")
        .or_else(|| base.strip_prefix("LPT"));
    let is_port = number.is_some_and(|number| {
        let mut characters = number.chars();
        let first = characters.next();
        characters.next().is_none() && first.is_some_and(|one| "0123456789¹²³".contains(one))
    });
    is_port || ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"].contains(&base.as_str())
}

/// Report whether a name looks like an 8.3 name, which Windows generates for files with long names.
#[cfg(any(not(unix), test))]
fn is_short_name(base: &str, extension: &str) -> bool {
    let number = base.rsplit_once('~').map(|(_, number)| number);
    base.chars().count() <= 8
        && extension.chars().count() <= 3
        && number.is_some_and(|number| {
            !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())
        })
}

/// Open a relative path if it leads to a regular file or a directory beneath `root` and has no hidden component.
/// Symbolic links are followed as long as they stay beneath `root`.
///
/// Each component is opened by itself, and links are resolved here instead of in the kernel: this works on every Unix,
/// needs neither `openat2` nor `/proc`, and reveals the names that a link leads through.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] for everything that must not be visible; otherwise the error of the system.
#[cfg(unix)]
pub fn open(root: &Path, path: &Path) -> io::Result<Entry> {
    use std::collections::VecDeque;
    use std::ffi::OsString;
    use std::os::fd::OwnedFd;
    use std::os::unix::ffi::OsStringExt;
    use std::path::Component;

    use rustix::fs::AtFlags;
    use rustix::fs::FileType;
    use rustix::fs::Mode;
    use rustix::fs::OFlags;

    let not_found = || io::Error::from(io::ErrorKind::NotFound);
    let as_directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parts = |path: &Path| {
        let mut parts = Vec::new();
        for component in path.components() {
            match component {
                Component::Normal(name) => parts.push(Some(name.to_owned())),
                Component::ParentDir => parts.push(None),
                Component::CurDir => {}
                Component::RootDir | Component::Prefix(_) => return Err(not_found()),
            }
        }
        Ok(parts)
    };
    // The components that are left; `None` is the parent.
    let mut left: VecDeque<Option<OsString>> = parts(path)?.into();
    // Opened by name each time: a build may have replaced the directory.
    let top = rustix::fs::open(root, as_directory, Mode::empty())?;
    // The open directories from the root to the current one.
    let mut open: Vec<OwnedFd> = vec![top];
    let mut links = 0;
    while let Some(part) = left.pop_front() {
        let Some(name) = part else {
            open.pop();
            if open.is_empty() {
                return Err(not_found());
            }
            continue;
        };
        if is_hidden(&name.to_string_lossy(), open.len() - 1) {
            return Err(not_found());
        }
        let here = open.last().ok_or_else(not_found)?;
        // Checked before it is opened: opening a device or a pipe can block or have side effects.
        let found = rustix::fs::statat(here, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => {
                let flags = as_directory | OFlags::NOFOLLOW;
                open.push(rustix::fs::openat(here, &name, flags, Mode::empty())?);
            }
            FileType::Symlink => {
                links += 1;
                if links > MAX_SYMLINKS {
                    return Err(not_found());
                }
                let target = rustix::fs::readlinkat(here, &name, Vec::new())?;
                let target = OsString::from_vec(target.into_bytes());
                for part in parts(Path::new(&target))?.into_iter().rev() {
                    left.push_front(part);
                }
                if left.len() > MAX_COMPONENTS {
                    return Err(not_found());
                }
            }
            FileType::RegularFile if left.is_empty() => {
                let flags = OFlags::RDONLY
                    | OFlags::NOFOLLOW
                    | OFlags::NONBLOCK
                    | OFlags::NOCTTY
                    | OFlags::CLOEXEC;
                let file = File::from(rustix::fs::openat(here, &name, flags, Mode::empty())?);
                // It may have been replaced since the check.
                return match file.metadata()?.is_file() && !is_kernel_file(&file) {
                    true => Ok(Entry::File(file)),
                    false => Err(not_found()),
                };
            }
            _ => return Err(not_found()),
        }
    }
    Ok(Entry::Directory)
}

/// Report whether a file is on procfs or sysfs, such as `/proc/self/environ`, which must stay private even if somebody
/// publishes `/`.
#[cfg(target_os = "linux")]
fn is_kernel_file(file: &File) -> bool {
    rustix::fs::fstatfs(file)
        .is_ok_and(|system| [rustix::fs::PROC_SUPER_MAGIC, SYSFS_MAGIC].contains(&system.f_type))
}

#[cfg(all(unix, not(target_os = "linux")))]
fn is_kernel_file(_file: &File) -> bool {
    false
}

/// Open a relative path if it leads to a regular file or a directory beneath `root` and has no hidden component.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] for everything that must not be visible; otherwise the error of the system.
#[cfg(not(unix))]
pub fn open(root: &Path, path: &Path) -> io::Result<Entry> {
    use std::path::Component;

    let not_found = || io::Error::from(io::ErrorKind::NotFound);
    let is_plain = |component| match component {
        Component::Normal(name) => !is_ambiguous_on_windows(&name.to_string_lossy()),
        Component::CurDir => true,
        _ => false,
    };
    if !path.components().all(is_plain) {
        return Err(not_found());
    }
    let root = root.canonicalize()?;
    // Links, junctions and short names (`GIT~1`) are resolved here.
    let resolved = root.join(path).canonicalize()?;
    let below = resolved.strip_prefix(&root).map_err(|_| not_found())?;
    let mut names = below.components().enumerate();
    if names.any(|(depth, name)| is_hidden(&name.as_os_str().to_string_lossy(), depth)) {
        return Err(not_found());
    }
    let metadata = resolved.metadata()?;
    if metadata.is_dir() {
        return Ok(Entry::Directory);
    }
    if !metadata.is_file() {
        return Err(not_found());
    }
    let file = File::open(&resolved)?;
    // The checked file was opened, unless somebody with write access has put a link in its place.
    match resolved.canonicalize()? == resolved && file.metadata()?.is_file() {
        true => Ok(Entry::File(file)),
        false => Err(not_found()),
    }
}

/// The most symbolic links in one resolution, as in Linux (path_resolution(7)).
#[cfg(unix)]
const MAX_SYMLINKS: usize = 40;

/// The most components left to resolve: more than any path of 4,096 bytes has.
#[cfg(unix)]
const MAX_COMPONENTS: usize = 4096;

/// The filesystem type of sysfs (statfs(2)).
#[cfg(target_os = "linux")]
const SYSFS_MAGIC: rustix::fs::FsWord = 0x6265_6572;

#[cfg(test)]
mod tests_of_names {
    use super::*;

    #[test]
    fn what_begins_with_a_dot_is_hidden_in_whatever_letters() {
        for name in [
            ".git",
            ".GIT",
            ".Git",
            "\u{200c}.git",
            "\u{feff}\u{200d}.env",
            ".",
            "..",
        ] {
            assert!(is_hidden(name, 0) && is_hidden(name, 1), "{name:?}");
        }
        for name in ["git", "a.git", "\u{200c}git", "~.git"] {
            assert!(!is_hidden(name, 0), "{name:?}");
        }
        assert!(!is_hidden(".well-known", 0));
        assert!(is_hidden(".well-known", 1) && is_hidden(".WELL-KNOWN", 0));
    }

    #[test]
    fn names_that_windows_takes_for_something_else_are_known() {
        for name in [
            "GIT~1",
            "git~12",
            "A~1.TXT",
            "page::$DATA",
            "page:stream",
            "page.",
            "page ",
            ".git.",
            ".git ",
            "page. .",
            "CON",
            "con",
            "nul.txt",
            "Nul.tar.gz",
            "aux ",
            "aux .js",
            "COM1",
            "com0.log",
            "LPT9",
            "lpt¹",
            "CONIN$",
            "conout$",
            "a\\b",
            "a?",
            "a*",
            "a|b",
            "a<b",
            "a\"b",
            "a\u{1}b",
        ] {
            assert!(is_ambiguous_on_windows(name), "{name:?}");
        }
        for name in [
            "index.html",
            "a.b.c",
            "console",
            "com",
            "com10",
            "comm",
            "nullable.js",
            "a~b",
            "a~",
            "notes~1.html",
            "a long name~1",
            "~",
            "a b",
            "grüße.txt",
            ".well-known",
            "x..y",
        ] {
            assert!(!is_ambiguous_on_windows(name), "{name:?}");
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    fn read(root: &Path, path: &str) -> Option<String> {
        match open(root, Path::new(path)) {
            Ok(Entry::File(mut file)) => {
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                Some(text)
            }
            Ok(Entry::Directory) => Some("a directory".into()),
            Err(_) => None,
        }
    }

    #[test]
    fn links_are_followed_beneath_the_directory_and_nowhere_else() {
        let outside = tempfile::tempdir().unwrap();
        let root = outside.path().join("site");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/page"), "page").unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        for (target, link) in [
            ("../page", "a/b/up"),
            ("a", "directory"),
            ("directory/b/up", "twice"),
            ("../secret", "out"),
            ("a/../../secret", "out-later"),
            ("/etc/passwd", "absolute"),
            ("..", "parent"),
            ("loop", "loop"),
        ] {
            symlink(target, root.join(link)).unwrap();
        }

        for path in ["a/page", "a/b/up", "directory/page", "twice"] {
            assert_eq!(read(&root, path).as_deref(), Some("page"), "{path}");
        }
        for path in [
            "out",
            "out-later",
            "absolute",
            "parent",
            "parent/secret",
            "loop",
            "../secret",
            "a/page/x",
            "nothing",
        ] {
            assert_eq!(read(&root, path), None, "{path}");
        }
        assert_eq!(read(&root, "directory").as_deref(), Some("a directory"));
    }

    #[test]
    fn hidden_files_stay_hidden_behind_links() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        fs::create_dir_all(root.join(".git/objects")).unwrap();
        fs::write(root.join(".git/config"), "secret").unwrap();
        fs::create_dir_all(root.join(".well-known")).unwrap();
        fs::write(root.join(".well-known/security.txt"), "contact").unwrap();
        symlink(".git", root.join("pub")).unwrap();
        symlink(".git/config", root.join("config")).unwrap();
        symlink(".well-known", root.join("known")).unwrap();

        for path in ["pub", "pub/config", "config", ".git/config"] {
            assert_eq!(read(root, path), None, "{path}");
        }
        for path in [".well-known/security.txt", "known/security.txt"] {
            assert_eq!(read(root, path).as_deref(), Some("contact"), "{path}");
        }
    }

    #[test]
    fn pipes_devices_and_kernel_files_are_not_served() {
        let root = tempfile::tempdir().unwrap();
        let pipe = root.path().join("pipe");
        assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
        let socket = std::os::unix::net::UnixListener::bind(root.path().join("socket")).unwrap();

        assert_eq!(read(root.path(), "pipe"), None);
        assert_eq!(read(root.path(), "socket"), None);
        assert_eq!(read(Path::new("/"), "dev/zero"), None);
        #[cfg(target_os = "linux")]
        for path in [
            "proc/self/environ",
            "sys/kernel/uevent_seqnum",
            "proc/self/root/etc/passwd",
        ] {
            assert_eq!(read(Path::new("/"), path), None, "{path}");
        }
        drop(socket);
    }
}
