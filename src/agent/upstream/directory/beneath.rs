//! Opening what is beneath a directory, whatever symbolic links say.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::SystemTime;

/// Something beneath a directory.
pub enum Entry {
    /// A regular file, open for reading.
    File(File),
    /// A directory.
    Directory,
}

/// Facts about an [`Entry`].
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// Report whether it is a directory.
    pub is_directory: bool,
    /// When it was changed, where that is known.
    pub modified: Option<SystemTime>,
    /// Its length in bytes.
    pub length: u64,
}

impl Entry {
    /// Ask the open file for its facts.
    pub fn facts(&self) -> io::Result<Facts> {
        let Self::File(file) = self else {
            return Ok(Facts {
                is_directory: true,
                modified: None,
                length: 0,
            });
        };
        let metadata = file.metadata()?;
        Ok(Facts {
            is_directory: false,
            modified: metadata.modified().ok(),
            length: metadata.len(),
        })
    }
}

/// Report whether a name is hidden at that depth below the directory that is served. `/.well-known/` (RFC
/// 8615) is made to be seen.
pub fn is_hidden(name: &str, depth: usize) -> bool {
    let shown = name.trim_start_matches(is_passed_over);
    shown.starts_with('.') && !(depth == 0 && name == ".well-known")
}

/// Report whether HFS+ does not look at a character when it compares names, so that one before it is still `.git`.
fn is_passed_over(character: char) -> bool {
    matches!(
        character,
        '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}'
    )
}

/// Report whether Windows may take a name for something else than a file of exactly this name: a device (`NUL`), a
/// stream of a file (`page::$DATA`), a file without the dots and blanks at the end, or one that has a longer name
/// (`GIT~1`). Elsewhere such names are like any other.
#[cfg(any(not(unix), test))]
fn is_ambiguous_on_windows(name: &str) -> bool {
    let is_reserved = |character: char| character < ' ' || r#"<>:"/\|?*"#.contains(character);
    let (base, extension) = name.split_once('.').unwrap_or((name, ""));
    name.contains(is_reserved)
        || name.ends_with(['.', ' '])
        || is_device(base)
        || is_short_name(base, extension)
}

/// Report whether the part of a name before its first dot is that of a device: with any extension it still is.
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

/// Report whether a name looks like those that Windows makes up beside long ones, of 8 characters and 3.
#[cfg(any(not(unix), test))]
fn is_short_name(base: &str, extension: &str) -> bool {
    let number = base.rsplit_once('~').map(|(_, number)| number);
    base.chars().count() <= 8
        && extension.chars().count() <= 3
        && number.is_some_and(|number| {
            !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())
        })
}

/// Open what a relative path leads to, if it is a regular file or a directory beneath `root` and nothing on the
/// way to it is hidden. Symbolic links are followed as long as they stay beneath `root`.
///
/// Each component is opened by itself and links are read here, not by the kernel: it is the same on every Unix,
/// needs neither `openat2` nor `/proc`, and shows the names that a link really leads through.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] for whatever is not to be seen; others of the system.
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
    // `None` is the parent.
    let mut left: VecDeque<Option<OsString>> = parts(path)?.into();
    // Named anew each time: a build may have replaced it.
    let top = rustix::fs::open(root, as_directory, Mode::empty())?;
    // The directories on the way, of which the last is where we are.
    let mut way: Vec<OwnedFd> = vec![top];
    let mut links = 0;
    while let Some(part) = left.pop_front() {
        let Some(name) = part else {
            way.pop();
            if way.is_empty() {
                return Err(not_found());
            }
            continue;
        };
        if is_hidden(&name.to_string_lossy(), way.len() - 1) {
            return Err(not_found());
        }
        let here = way.last().ok_or_else(not_found)?;
        // Looked at before it is opened: some devices and pipes do not bear being opened.
        let found = rustix::fs::statat(here, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => {
                let flags = as_directory | OFlags::NOFOLLOW;
                way.push(rustix::fs::openat(here, &name, flags, Mode::empty())?);
            }
            FileType::Symlink => {
                links += 1;
                if links > LINKS {
                    return Err(not_found());
                }
                let target = rustix::fs::readlinkat(here, &name, Vec::new())?;
                let target = OsString::from_vec(target.into_bytes());
                for part in parts(Path::new(&target))?.into_iter().rev() {
                    left.push_front(part);
                }
                if left.len() > PARTS {
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
                // It may have been replaced in between.
                return match file.metadata()?.is_file() && !is_of_the_kernel(&file) {
                    true => Ok(Entry::File(file)),
                    false => Err(not_found()),
                };
            }
            _ => return Err(not_found()),
        }
    }
    Ok(Entry::Directory)
}

/// Report whether a file is a view into the kernel or into processes, such as `/proc/self/environ`: somebody may
/// publish `/`.
#[cfg(target_os = "linux")]
fn is_of_the_kernel(file: &File) -> bool {
    rustix::fs::fstatfs(file)
        .is_ok_and(|system| [rustix::fs::PROC_SUPER_MAGIC, SYSFS_MAGIC].contains(&system.f_type))
}

#[cfg(all(unix, not(target_os = "linux")))]
fn is_of_the_kernel(_file: &File) -> bool {
    false
}

/// Open what a relative path leads to, if it is a regular file or a directory beneath `root` and nothing on the
/// way to it is hidden.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] for whatever is not to be seen; others of the system.
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
    // What was opened is what was looked at, unless somebody who may write here has put a link in between.
    match resolved.canonicalize()? == resolved && file.metadata()?.is_file() {
        true => Ok(Entry::File(file)),
        false => Err(not_found()),
    }
}

/// Symbolic links on one way: as many as Linux follows (path_resolution(7)).
#[cfg(unix)]
const LINKS: usize = 40;

/// Components that may be left to walk: more than any path of 4,096 bytes has.
#[cfg(unix)]
const PARTS: usize = 4096;

/// The type of sysfs (statfs(2)).
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
    fn links_lead_anywhere_beneath_the_directory_and_nowhere_else() {
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
    fn what_is_hidden_stays_so_under_another_name() {
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
    fn pipes_devices_and_views_of_the_kernel_are_no_files() {
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
