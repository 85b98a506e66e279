//! Text files that people write, on any system, with any editor.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Read a text file: UTF-8, or UTF-16 with a byte order mark as PowerShell's `>` and Notepad write
/// it. The mark is removed, and lines end in a line feed alone.
///
/// # Errors
/// Those of the system; [`io::ErrorKind::InvalidData`] if it is not text, and
/// [`io::ErrorKind::FileTooLarge`] above 4 MiB.
pub fn read_text(path: &Path) -> io::Result<String> {
    let not_text = || io::Error::new(io::ErrorKind::InvalidData, "it is not text in UTF-8");
    decode(&read(path)?).ok_or_else(not_text)
}

/// Read a PEM file as [`read_text`] does. Text between its blocks may be in any encoding.
///
/// # Errors
/// Those of [`read_text`], except for the encoding.
pub fn read_pem(path: &Path) -> io::Result<String> {
    let bytes = read(path)?;
    Ok(decode(&bytes).unwrap_or_else(|| String::from_utf8_lossy(&bytes).into_owned()))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MAX_FILE {
        true => Err(io::ErrorKind::FileTooLarge.into()),
        false => Ok(bytes),
    }
}

/// Decode text as [`read_text`] does; `None` if it is not text.
pub fn decode(bytes: &[u8]) -> Option<String> {
    let utf16 = |pairs: &[u8], unit: fn([u8; 2]) -> u16| {
        let pairs = pairs.chunks(2);
        let units = pairs.map(|pair| Some(unit(pair.try_into().ok()?)));
        String::from_utf16(&units.collect::<Option<Vec<_>>>()?).ok()
    };
    let text = match bytes {
        [0xef, 0xbb, 0xbf, rest @ ..] => Cow::Borrowed(std::str::from_utf8(rest).ok()?),
        [0xff, 0xfe, rest @ ..] => Cow::Owned(utf16(rest, u16::from_le_bytes)?),
        [0xfe, 0xff, rest @ ..] => Cow::Owned(utf16(rest, u16::from_be_bytes)?),
        rest => Cow::Borrowed(std::str::from_utf8(rest).ok()?),
    };
    Some(text.replace("\r\n", "\n"))
}

/// Largest file that is read, in bytes: a bundle of all public certificate authorities is a fifth
/// of that.
const MAX_FILE: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_encoding_and_line_ending_decodes_to_the_same_text() {
        let wide = |unit: fn(u16) -> [u8; 2]| {
            let units = "\u{feff}a = \"ü\"\r\nb\r\n".encode_utf16();
            units.flat_map(unit).collect::<Vec<u8>>()
        };
        for bytes in [
            "a = \"ü\"\nb\n".as_bytes().to_vec(),
            "a = \"ü\"\r\nb\r\n".as_bytes().to_vec(),
            "\u{feff}a = \"ü\"\r\nb\r\n".as_bytes().to_vec(),
            wide(u16::to_le_bytes),
            wide(u16::to_be_bytes),
        ] {
            assert_eq!(
                decode(&bytes).as_deref(),
                Some("a = \"ü\"\nb\n"),
                "{bytes:?}"
            );
        }
        for bytes in [&b"\xff"[..], b"\xff\xfea", b"\xff\xfe\x00\xd8"] {
            assert_eq!(decode(bytes), None, "{bytes:?}");
        }
    }
}
