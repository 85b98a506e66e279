//! The head of an HTTP/1.x answer, read as curl and browsers read it (RFC 9112 §2.2, §5.2, §6.3).
//!
//! What is lenient here is lenient towards the upstream alone: the head becomes a [`HeaderMap`] of valid names and
//! values and one unambiguous [`Framing`]. An answer whose length can be understood in two ways is refused.

use std::fmt;

use ::http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use ::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use memchr::memchr;

use crate::proto::BODY_LIMIT;

/// A head that has been read.
#[derive(Debug)]
pub struct AnswerHead {
    pub status: StatusCode,
    /// As it was sent, without what cannot stand in one.
    pub reason: Vec<u8>,
    pub fields: HeaderMap,
    pub framing: Framing,
    /// The connection may be used again.
    pub keep_alive: bool,
    /// Fields that were left out or changed, for the log.
    pub oddities: Vec<Oddity>,
}

/// Where the body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// After that many bytes.
    Length(u64),
    /// After the last chunk.
    Chunked,
    /// With the connection.
    Close,
}

/// A field that is not as it was sent, or a line that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oddity {
    /// The field's name, escaped.
    pub name: String,
    pub what: &'static str,
}

/// What the bytes that have come are the beginning of.
#[derive(Debug, PartialEq, Eq)]
pub enum Start {
    /// A whole head, of that many bytes.
    Whole(usize),
    /// A head, of which more has to come.
    Part,
}

/// Find the end of the head at the start of `bytes`, of which `seen` bytes were searched before.
///
/// # Errors
/// If the bytes are not the beginning of an HTTP answer, or the head is too long.
pub fn find_end(bytes: &[u8], seen: &mut usize) -> Result<Start, HeadError> {
    let blank = bytes.iter().take_while(|b| matches!(b, b'\r' | b'\n'));
    let start = blank.count();
    if !is_http(&bytes[start..]) {
        return Err(HeadError::not_http(bytes));
    }
    let mut at = (*seen).max(start);
    while let Some(found) = memchr(b'\n', &bytes[at..]) {
        let after = at + found + 1;
        // The line that follows decides; until all of it that matters is here, this one is looked at again.
        let end = match bytes.get(after..).unwrap_or_default() {
            [b'\n', ..] => Some(after + 1),
            [b'\r', b'\n', ..] => Some(after + 2),
            [] | [b'\r'] => break,
            _ => None,
        };
        match end {
            Some(end) if end > MOST_HEAD => return Err(HeadError::TooLong),
            Some(end) => return Ok(Start::Whole(end)),
            None => at = after,
        }
    }
    *seen = at;
    match bytes.len() > MOST_HEAD {
        true => Err(HeadError::TooLong),
        false => Ok(Start::Part),
    }
}

/// Report whether this may be the beginning of a status line. Radio stations say `ICY`, which browsers read.
fn is_http(bytes: &[u8]) -> bool {
    [&b"HTTP/"[..], b"ICY "].iter().any(|word| {
        let length = word.len().min(bytes.len());
        bytes[..length].eq_ignore_ascii_case(&word[..length])
    })
}

/// Read a whole head.
///
/// # Errors
/// If it has no status, more fields than anybody reads, or a length that is not one.
pub fn read(head: &[u8]) -> Result<AnswerHead, HeadError> {
    let mut lines = head.split(|b| *b == b'\n').map(without_returns);
    let status_line = lines.by_ref().find(|line| !line.is_empty());
    let (status, reason, is_http10) = status_line
        .and_then(read_status)
        .ok_or_else(|| HeadError::Status(shown(status_line.unwrap_or_default())))?;
    let mut fields = FieldLines::default();
    for line in lines {
        fields.add(line)?;
    }
    fields.end()?;
    let FieldLines {
        mut map, oddities, ..
    } = fields;
    let framing = frame(&mut map)?;
    let keep_alive = keeps_alive(&map, is_http10.0) && framing.1;
    Ok(AnswerHead {
        status,
        reason,
        fields: map,
        framing: framing.0,
        keep_alive,
        oddities,
    })
}

struct IsHttp10(bool);

fn read_status(line: &[u8]) -> Option<(StatusCode, Vec<u8>, IsHttp10)> {
    let blank = |b: &u8| matches!(b, b' ' | b'\t');
    let version_ends = line.iter().position(blank)?;
    let (version, rest) = line.split_at(version_ends);
    let is_http10 = match version.get(..5) {
        Some(word) if word.eq_ignore_ascii_case(b"HTTP/") => version[5..].starts_with(b"1.0"),
        _ => true,
    };
    let digits = rest.iter().position(|b| !blank(b))?;
    let rest = &rest[digits..];
    let code = rest.get(..3)?;
    if rest.get(3).is_some_and(u8::is_ascii_digit) {
        return None;
    }
    let status = StatusCode::from_bytes(code).ok()?;
    let reason = rest[3..].trim_ascii();
    let reason = reason.iter().take(MOST_REASON).map(|b| visible(*b));
    Some((status, reason.collect(), IsHttp10(is_http10)))
}

/// The lines of a head on their way into a map.
#[derive(Default)]
struct FieldLines {
    map: HeaderMap,
    count: usize,
    /// The field that the next line may go on with.
    open: Option<(HeaderName, Vec<u8>)>,
    oddities: Vec<Oddity>,
}

impl FieldLines {
    fn add(&mut self, line: &[u8]) -> Result<(), HeadError> {
        if let [b' ' | b'\t', ..] = line {
            // Obsolete folding (RFC 9112 §5.2): one blank instead of the end of the line.
            if let Some((_, value)) = &mut self.open {
                value.push(b' ');
                value.extend_from_slice(line.trim_ascii());
            }
            return Ok(());
        }
        self.end()?;
        if line.is_empty() {
            return Ok(());
        }
        let Some(colon) = memchr(b':', line) else {
            self.note(line, "is a line without a colon, and left out");
            return Ok(());
        };
        let name = line[..colon].trim_ascii_end();
        let value = line[colon + 1..].trim_ascii();
        self.count += 1;
        if self.count > MOST_FIELDS {
            return Err(HeadError::TooManyFields);
        }
        match HeaderName::from_bytes(name) {
            Ok(name) => self.open = Some((name, value.to_vec())),
            Err(_) if is_about_length(name) => return Err(HeadError::length_name(name)),
            Err(_) => self.note(name, "is not the name of a field, which is left out"),
        }
        Ok(())
    }

    /// Put the field into the map that no line goes on with.
    fn end(&mut self) -> Result<(), HeadError> {
        let Some((name, mut value)) = self.open.take() else {
            return Ok(());
        };
        if value.iter().any(|b| visible(*b) != *b) {
            if is_about_length(name.as_str().as_bytes()) {
                return Err(HeadError::length_name(name.as_str().as_bytes()));
            }
            self.note(
                name.as_str().as_bytes(),
                "has control characters, which become blanks",
            );
            value.iter_mut().for_each(|b| *b = visible(*b));
        }
        let value = HeaderValue::from_bytes(value.trim_ascii()).map_err(|_| HeadError::TooLong)?;
        self.map
            .try_append(name, value)
            .map(drop)
            .map_err(|_| HeadError::TooManyFields)
    }

    fn note(&mut self, name: &[u8], what: &'static str) {
        if self.oddities.len() < MOST_ODDITIES {
            let name = shown(name);
            self.oddities.push(Oddity { name, what });
        }
    }
}

/// Find where the body ends, and leave at most one field that says so. The second value tells whether the
/// connection is in order after it.
fn frame(fields: &mut HeaderMap) -> Result<(Framing, bool), HeadError> {
    let chunked = is_chunked(fields)?;
    fields.remove(TRANSFER_ENCODING);
    let length = length(fields)?;
    match (chunked, length) {
        (true, None) => Ok((Framing::Chunked, true)),
        (true, Some(_)) => {
            // The coding wins, and the connection is not trusted any more (RFC 9112 §6.3).
            fields.remove(CONTENT_LENGTH);
            Ok((Framing::Chunked, false))
        }
        (false, Some(length)) => {
            fields.insert(CONTENT_LENGTH, length.into());
            Ok((Framing::Length(length), true))
        }
        (false, None) => Ok((Framing::Close, true)),
    }
}

/// `chunked` twice is what an application and a library say that know nothing of each other: it is one coding.
fn is_chunked(fields: &HeaderMap) -> Result<bool, HeadError> {
    let mut chunked = false;
    for value in fields.get_all(TRANSFER_ENCODING) {
        for coding in value.as_bytes().split(|b| *b == b',') {
            match coding.trim_ascii() {
                b"" => {}
                coding if coding.eq_ignore_ascii_case(b"identity") => {}
                coding if coding.eq_ignore_ascii_case(b"chunked") => chunked = true,
                coding => return Err(HeadError::Coding(shown(coding))),
            }
        }
    }
    Ok(chunked)
}

/// Read the length, which may be said several times as long as it is the same (RFC 9110 §8.6).
fn length(fields: &HeaderMap) -> Result<Option<u64>, HeadError> {
    let mut length = None;
    for value in fields.get_all(CONTENT_LENGTH) {
        for text in value.as_bytes().split(|b| *b == b',') {
            let text = text.trim_ascii();
            let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
            let said = std::str::from_utf8(text).ok().filter(|_| digits);
            let said = said.and_then(|text| text.parse::<u64>().ok());
            // A stream carries no more, and the largest two numbers are hyper's for other things.
            let said = said.filter(|said| *said < BODY_LIMIT);
            let said = said.ok_or(HeadError::Length)?;
            if length.is_some_and(|length| length != said) {
                return Err(HeadError::Lengths);
            }
            length = Some(said);
        }
    }
    Ok(length)
}

fn keeps_alive(fields: &HeaderMap, is_http10: bool) -> bool {
    let says = |word: &[u8]| {
        let values = fields.get_all(CONNECTION).into_iter();
        let mut options = values.flat_map(|value| value.as_bytes().split(|b| *b == b','));
        options.any(|option| option.trim_ascii().eq_ignore_ascii_case(word))
    };
    !says(b"close") && (!is_http10 || says(b"keep-alive"))
}

/// Report whether a name would be that of a field which says where the body ends, if its odd characters were not there.
fn is_about_length(name: &[u8]) -> bool {
    let plain: Vec<u8> = name
        .iter()
        .filter(|b| b.is_ascii_alphanumeric() || **b == b'-')
        .map(u8::to_ascii_lowercase)
        .collect();
    plain == b"content-length" || plain == b"transfer-encoding"
}

/// What may stand in a value or a reason phrase, or a blank instead (RFC 9110 §5.5).
fn visible(byte: u8) -> u8 {
    match byte {
        b'\t' | b' '..=b'~' | 0x80.. => byte,
        _ => b' ',
    }
}

fn without_returns(mut line: &[u8]) -> &[u8] {
    while let [rest @ .., b'\r'] = line {
        line = rest;
    }
    line
}

/// Write bytes of the upstream for a log: the first of them, escaped.
fn shown(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(SHOWN)].escape_ascii().to_string()
}

/// The longest head: what browsers read (curl reads 300 KiB).
pub const MOST_HEAD: usize = 256 << 10;

/// The most fields of one head: what curl reads. Each costs far more memory than its bytes.
const MOST_FIELDS: usize = 5_000;

/// Nobody reads a longer reason.
const MOST_REASON: usize = 512;

/// Enough to see what is wrong with a server.
const MOST_ODDITIES: usize = 4;

/// Bytes of an upstream that are shown.
const SHOWN: usize = 64;

/// An answer cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("it does not answer in HTTP/1.1: its first bytes are \"{first}\"{hint}")]
    NotHttp { first: String, hint: Hint },
    #[error("the head of its answer is longer than {} KiB", MOST_HEAD >> 10)]
    TooLong,
    #[error("the head of its answer has more than {MOST_FIELDS} fields")]
    TooManyFields,
    #[error("its answer has no status: its first line is \"{0}\"")]
    Status(String),
    #[error("the field content-length of its answer is not the length of a body")]
    Length,
    #[error("its answer has fields content-length that contradict each other")]
    Lengths,
    #[error("the field \"{0}\" of its answer is malformed, and says where the body ends")]
    LengthName(String),
    #[error(
        "the field transfer-encoding of its answer has the coding \"{0}\", which nobody asked for"
    )]
    Coding(String),
    #[error("it closed the connection within the head of its answer, which begins \"{0}\"")]
    Cut(String),
}

impl HeadError {
    fn not_http(bytes: &[u8]) -> Self {
        Self::NotHttp {
            first: shown(bytes),
            hint: Hint::of(bytes),
        }
    }

    fn length_name(name: &[u8]) -> Self {
        Self::LengthName(shown(name))
    }

    /// The connection ended after these bytes of a head.
    pub fn cut(bytes: &[u8]) -> Self {
        Self::Cut(shown(bytes))
    }
}

/// A guess at what speaks there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    Tls,
    Http2,
    None,
}

impl Hint {
    fn of(bytes: &[u8]) -> Self {
        match bytes {
            // A record of TLS: an alert or a part of a handshake.
            [0x15 | 0x16, 3, 0..=4, ..] => Self::Tls,
            // A frame of HTTP/2 on the connection itself: SETTINGS or GOAWAY.
            [0, _, _, 4 | 7, 0 | 1, 0, 0, 0, 0, ..] => Self::Http2,
            _ => Self::None,
        }
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls => "; this looks like TLS: write https://HOST:PORT (or https+insecure://…)",
            Self::Http2 => "; this looks like HTTP/2 only: write h2c://HOST:PORT",
            Self::None => "",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value<'a>(head: &'a AnswerHead, name: &str) -> &'a str {
        head.fields
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    fn framing(fields: &str) -> Result<Framing, HeadError> {
        let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
        read(head.as_bytes()).map(|head| head.framing)
    }

    #[test]
    fn folded_lines_are_one_value_also_at_bare_line_feeds() {
        let head = read(b"HTTP/1.1 200 OK\nA: one;\r\n two\n\t three \nB: 1\n\n").unwrap();

        assert_eq!(
            (value(&head, "a"), value(&head, "b")),
            ("one; two three", "1")
        );
    }

    #[test]
    fn a_name_may_have_a_blank_behind_it_and_none_is_no_field() {
        let head =
            read(b"HTTP/1.1 200 OK\r\nA : 1\r\n: 2\r\nno colon\r\nB(c): 3\r\nD:4\r\n\r\n").unwrap();

        assert_eq!((value(&head, "a"), value(&head, "d")), ("1", "4"));
        assert_eq!(head.fields.len(), 2);
        let names: Vec<_> = head.oddities.iter().map(|odd| odd.name.as_str()).collect();
        assert_eq!(names, ["", "no colon", "B(c)"]);
    }

    #[test]
    fn control_characters_become_blanks_so_that_no_field_is_split() {
        let head =
            read(b"HTTP/1.1 200 a\x01b\r\nA: 1\rSet-Cookie: x\0y\r\nB: \xe9\r\n\r\n").unwrap();

        assert_eq!(value(&head, "a"), "1 Set-Cookie: x y");
        assert_eq!(head.fields["b"].as_bytes(), b"\xe9");
        assert_eq!((head.fields.len(), head.reason), (2, b"a b".to_vec()));
    }

    #[test]
    fn odd_status_lines_are_read_as_browsers_read_them() {
        let status = |line: &str| {
            let head = read(format!("{line}\r\n\r\n").as_bytes());
            head.map(|head| (head.status.as_u16(), head.keep_alive))
                .ok()
        };
        assert_eq!(status("HTTP/1.1 200"), Some((200, true)));
        assert_eq!(status("HTTP/1.1  404   Not Found"), Some((404, true)));
        assert_eq!(status("\r\n\r\nHTTP/1.1 200 OK"), Some((200, true)));
        assert_eq!(status("http/1.1\t200 OK"), Some((200, true)));
        assert_eq!(status("HTTP/1.0 200 OK"), Some((200, false)));
        assert_eq!(status("ICY 200 OK"), Some((200, false)));
        assert_eq!(status("HTTP/1.1 999 No"), Some((999, true)));
        for wrong in [
            "HTTP/1.1",
            "HTTP/1.1 OK",
            "HTTP/1.1 99",
            "HTTP/1.1 2000",
            "HTTP/1.1 099",
        ] {
            assert_eq!(status(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_length_is_unambiguous_or_refused() {
        assert_eq!(framing(""), Ok(Framing::Close));
        assert_eq!(framing("Content-Length: 5\r\n"), Ok(Framing::Length(5)));
        assert_eq!(
            framing("Content-Length: 5\r\ncontent-length: 5, 5\r\n"),
            Ok(Framing::Length(5))
        );
        let wrong = framing("Content-Length: 5\r\nContent-Length: 6\r\n");
        assert_eq!(wrong, Err(HeadError::Lengths));
        let too_long = BODY_LIMIT.to_string();
        for wrong in [
            "+5",
            "-1",
            "5 5",
            "0x5",
            "",
            "5,",
            &too_long,
            "18446744073709551616",
        ] {
            let wrong = framing(&format!("Content-Length: {wrong}\r\n"));
            assert_eq!(wrong, Err(HeadError::Length));
        }
        let longest = framing(&format!("Content-Length: {}\r\n", BODY_LIMIT - 1));
        assert_eq!(longest, Ok(Framing::Length(BODY_LIMIT - 1)));
        for wrong in [
            "Content-Length\x0b: 5\r\n",
            "Content-Length: 5\r\x016\r\n",
            "\"Transfer-Encoding\": chunked\r\n",
        ] {
            assert!(
                matches!(framing(wrong), Err(HeadError::LengthName(_))),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn chunked_is_one_coding_however_often_it_is_said() {
        for said in [
            "chunked",
            "Chunked",
            "chunked, chunked",
            "identity, chunked",
            "chunked\r\nTransfer-Encoding: chunked",
        ] {
            let said = framing(&format!("Transfer-Encoding: {said}\r\n"));
            assert_eq!(said, Ok(Framing::Chunked));
        }
        let gzip = framing("Transfer-Encoding: gzip, chunked\r\n");
        assert_eq!(gzip, Err(HeadError::Coding("gzip".into())));
        let both = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n";
        let both = read(both).unwrap();
        assert_eq!((both.framing, both.keep_alive), (Framing::Chunked, false));
        assert!(both.fields.is_empty());
    }

    #[test]
    fn the_end_of_a_head_is_found_however_it_arrives() {
        for head in [
            "HTTP/1.1 200 OK\r\nA: 1\r\n\r\n",
            "\r\nHTTP/1.1 200 OK\n\n",
            "HTTP/1.1 200 OK\r\n\n",
        ] {
            let mut seen = 0;
            let bytes = format!("{head}body\r\n\r\n");
            for length in 0..head.len() {
                let part = find_end(&bytes.as_bytes()[..length], &mut seen);
                assert_eq!(part, Ok(Start::Part), "{head:?} {length}");
            }
            let whole = find_end(bytes.as_bytes(), &mut seen);
            assert_eq!(whole, Ok(Start::Whole(head.len())));
        }
    }

    #[test]
    fn what_is_not_http_is_shown_with_a_hint() {
        let shown = |bytes: &[u8]| find_end(bytes, &mut 0).unwrap_err().to_string();
        assert!(shown(b"SSH-2.0-OpenSSH_9.2\r\n").ends_with("\"SSH-2.0-OpenSSH_9.2\\r\\n\""));
        assert!(shown(b"\x15\x03\x03\0\x02\x02\x46").contains("https://"));
        assert!(shown(b"\0\0\x12\x04\0\0\0\0\0").contains("h2c://"));
        assert!(shown(&[0xff; 500]).len() < 400);
    }

    #[test]
    fn a_head_of_256_kib_is_read_and_not_a_byte_more() {
        let head = |length: usize| {
            let start = "HTTP/1.1 200 OK\r\nA: ";
            let filling = "a".repeat(length - start.len() - 4);
            format!("{start}{filling}\r\n\r\n")
        };
        let most = head(MOST_HEAD);
        assert_eq!(
            find_end(most.as_bytes(), &mut 0),
            Ok(Start::Whole(MOST_HEAD))
        );
        assert!(read(most.as_bytes()).is_ok());
        let more = head(MOST_HEAD + 1);
        assert_eq!(find_end(more.as_bytes(), &mut 0), Err(HeadError::TooLong));
        let endless = &more.as_bytes()[..MOST_HEAD + 1];
        assert_eq!(find_end(endless, &mut 0), Err(HeadError::TooLong));
    }
}
