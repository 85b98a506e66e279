//! A parser for the heads of HTTP/1.x responses, as lenient as curl and browsers (RFC 9112 §2.2, §5.2, §6.3).
//!
//! The leniency ends here: the result is a [`HeaderMap`] of valid names and values with one unambiguous [`Framing`].
//! A response whose length can be understood in two ways is refused.

use std::fmt;

use ::http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use ::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use memchr::memchr;

use crate::proto::BODY_LIMIT;

/// A parsed head.
#[derive(Debug)]
pub struct ParsedHead {
    pub status: StatusCode,
    /// The reason phrase, with invalid bytes replaced by blanks.
    pub reason: Vec<u8>,
    pub fields: HeaderMap,
    pub framing: Framing,
    /// The connection may be reused after this response.
    pub keep_alive: bool,
    /// Fields that were dropped or changed, for the log.
    pub anomalies: Vec<Anomaly>,
}

/// The way in which the end of the body is determined (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// The body has this many bytes.
    Length(u64),
    /// The body ends with the last chunk.
    Chunked,
    /// The body ends with the connection.
    Close,
}

/// A field that was changed, or a line that was dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anomaly {
    /// The name of the field, or the start of the line, escaped.
    pub name: String,
    /// The text for the log, which follows the name.
    pub problem: &'static str,
}

/// The result of [`find_end`].
#[derive(Debug, PartialEq, Eq)]
pub enum HeadScan {
    /// The head is complete, and has this many bytes.
    Complete(usize),
    /// More bytes are needed.
    Partial,
}

/// Find the end of the head at the start of `bytes`. `seen` is the number of bytes that earlier calls have searched.
///
/// # Errors
/// [`HeadError`] if the bytes are not the start of an HTTP response, or the head is too long.
pub fn find_end(bytes: &[u8], seen: &mut usize) -> Result<HeadScan, HeadError> {
    let blank = bytes.iter().take_while(|b| matches!(b, b'\r' | b'\n'));
    let start = blank.count();
    if !is_http(&bytes[start..]) {
        return Err(HeadError::not_http(bytes));
    }
    let mut at = (*seen).max(start);
    while let Some(found) = memchr(b'\n', &bytes[at..]) {
        let after = at + found + 1;
        // An empty line ends the head. If the bytes after the line feed are missing, it is examined again next time.
        let end = match bytes.get(after..).unwrap_or_default() {
            [b'\n', ..] => Some(after + 1),
            [b'\r', b'\n', ..] => Some(after + 2),
            [] | [b'\r'] => break,
            _ => None,
        };
        match end {
            Some(end) if end > MAX_HEAD => return Err(HeadError::TooLong),
            Some(end) => return Ok(HeadScan::Complete(end)),
            None => at = after,
        }
    }
    *seen = at;
    match bytes.len() > MAX_HEAD {
        true => Err(HeadError::TooLong),
        false => Ok(HeadScan::Partial),
    }
}

/// Report whether these bytes can be the start of a status line. Internet radio servers send `ICY`, which browsers
/// accept.
fn is_http(bytes: &[u8]) -> bool {
    [&b"HTTP/"[..], b"ICY "].iter().any(|word| {
        let length = word.len().min(bytes.len());
        bytes[..length].eq_ignore_ascii_case(&word[..length])
    })
}

/// Parse a complete head.
///
/// # Errors
/// [`HeadError`] if it has no valid status, too many fields, or an invalid length.
pub fn parse(head: &[u8]) -> Result<ParsedHead, HeadError> {
    let mut lines = head.split(|b| *b == b'\n').map(trim_carriage_returns);
    let status_line = lines.by_ref().find(|line| !line.is_empty());
    let (status, reason, is_http10) = status_line
        .and_then(parse_status_line)
        .ok_or_else(|| HeadError::Status(excerpt(status_line.unwrap_or_default())))?;
    let mut fields = FieldLines::default();
    for line in lines {
        fields.add(line)?;
    }
    fields.finish_field()?;
    let FieldLines {
        mut map, anomalies, ..
    } = fields;
    let (framing, is_consistent) = resolve_framing(&mut map)?;
    let keep_alive = is_persistent(&map, is_http10.0) && is_consistent;
    Ok(ParsedHead {
        status,
        reason,
        fields: map,
        framing,
        keep_alive,
        anomalies,
    })
}

/// The version of the status line: set for HTTP/1.0 and ICY.
struct IsHttp10(bool);

/// Parse a status line, with any number of blanks between its parts.
fn parse_status_line(line: &[u8]) -> Option<(StatusCode, Vec<u8>, IsHttp10)> {
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
    let reason = reason
        .iter()
        .take(MAX_REASON)
        .map(|b| printable_or_space(*b));
    Some((status, reason.collect(), IsHttp10(is_http10)))
}

/// Collects the field lines of a head into a map.
#[derive(Default)]
struct FieldLines {
    map: HeaderMap,
    count: usize,
    /// The last field, which the next line may continue (obsolete line folding).
    pending: Option<(HeaderName, Vec<u8>)>,
    anomalies: Vec<Anomaly>,
}

impl FieldLines {
    /// Add one line.
    fn add(&mut self, line: &[u8]) -> Result<(), HeadError> {
        if let [b' ' | b'\t', ..] = line {
            // Obsolete line folding (RFC 9112 §5.2): replaced by one blank.
            if let Some((_, value)) = &mut self.pending {
                value.push(b' ');
                value.extend_from_slice(line.trim_ascii());
            }
            return Ok(());
        }
        self.finish_field()?;
        if line.is_empty() {
            return Ok(());
        }
        let Some(colon) = memchr(b':', line) else {
            self.record(line, "is a line without a colon, which is dropped");
            return Ok(());
        };
        let name = line[..colon].trim_ascii_end();
        let value = line[colon + 1..].trim_ascii();
        self.count += 1;
        if self.count > MAX_FIELDS {
            return Err(HeadError::TooManyFields);
        }
        match HeaderName::from_bytes(name) {
            Ok(name) => self.pending = Some((name, value.to_vec())),
            Err(_) if resembles_framing_field(name) => return Err(HeadError::length_name(name)),
            Err(_) => self.record(name, "is not a valid field name, the field is dropped"),
        }
        Ok(())
    }

    /// Move the pending field into the map.
    fn finish_field(&mut self) -> Result<(), HeadError> {
        let Some((name, mut value)) = self.pending.take() else {
            return Ok(());
        };
        if value.iter().any(|b| printable_or_space(*b) != *b) {
            if resembles_framing_field(name.as_str().as_bytes()) {
                return Err(HeadError::length_name(name.as_str().as_bytes()));
            }
            self.record(
                name.as_str().as_bytes(),
                "has control characters, which are replaced by blanks",
            );
            value.iter_mut().for_each(|b| *b = printable_or_space(*b));
        }
        let value = HeaderValue::from_bytes(value.trim_ascii()).map_err(|_| HeadError::TooLong)?;
        self.map
            .try_append(name, value)
            .map(drop)
            .map_err(|_| HeadError::TooManyFields)
    }

    /// Record an anomaly, up to [`MAX_ANOMALIES`].
    fn record(&mut self, name: &[u8], problem: &'static str) {
        if self.anomalies.len() < MAX_ANOMALIES {
            let name = excerpt(name);
            self.anomalies.push(Anomaly { name, problem });
        }
    }
}

/// Determine the framing of the body, and leave at most one field that states it. The second value is false if the
/// fields contradict each other, so that the connection must not be reused.
fn resolve_framing(fields: &mut HeaderMap) -> Result<(Framing, bool), HeadError> {
    let chunked = is_chunked(fields)?;
    fields.remove(TRANSFER_ENCODING);
    let length = content_length(fields)?;
    match (chunked, length) {
        (true, None) => Ok((Framing::Chunked, true)),
        (true, Some(_)) => {
            // Transfer-Encoding overrides Content-Length, and the connection is not reused (RFC 9112 §6.3).
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

/// Report whether the body is chunked. `chunked` may be listed twice, as when an application and its library both add
/// it: that counts as one coding.
fn is_chunked(fields: &HeaderMap) -> Result<bool, HeadError> {
    let mut chunked = false;
    for value in fields.get_all(TRANSFER_ENCODING) {
        for coding in value.as_bytes().split(|b| *b == b',') {
            match coding.trim_ascii() {
                b"" => {}
                coding if coding.eq_ignore_ascii_case(b"identity") => {}
                coding if coding.eq_ignore_ascii_case(b"chunked") => chunked = true,
                coding => return Err(HeadError::Coding(excerpt(coding))),
            }
        }
    }
    Ok(chunked)
}

/// Parse `Content-Length`, which may be repeated as long as all values are the same (RFC 9110 §8.6).
fn content_length(fields: &HeaderMap) -> Result<Option<u64>, HeadError> {
    let mut length = None;
    for value in fields.get_all(CONTENT_LENGTH) {
        for text in value.as_bytes().split(|b| *b == b',') {
            let text = text.trim_ascii();
            let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
            let value = std::str::from_utf8(text).ok().filter(|_| digits);
            let value = value.and_then(|text| text.parse::<u64>().ok());
            // No stream carries more, and hyper reserves the largest two values.
            let value = value.filter(|value| *value < BODY_LIMIT);
            let value = value.ok_or(HeadError::Length)?;
            if length.is_some_and(|length| length != value) {
                return Err(HeadError::Lengths);
            }
            length = Some(value);
        }
    }
    Ok(length)
}

/// Report whether the upstream keeps the connection open (RFC 9112 §9.3).
fn is_persistent(fields: &HeaderMap, is_http10: bool) -> bool {
    let has_option = |word: &[u8]| {
        let values = fields.get_all(CONNECTION).into_iter();
        let mut options = values.flat_map(|value| value.as_bytes().split(|b| *b == b','));
        options.any(|option| option.trim_ascii().eq_ignore_ascii_case(word))
    };
    !has_option(b"close") && (!is_http10 || has_option(b"keep-alive"))
}

/// Report whether a name without its invalid characters is that of a framing field.
fn resembles_framing_field(name: &[u8]) -> bool {
    let plain: Vec<u8> = name
        .iter()
        .filter(|b| b.is_ascii_alphanumeric() || **b == b'-')
        .map(u8::to_ascii_lowercase)
        .collect();
    plain == b"content-length" || plain == b"transfer-encoding"
}

/// Return the byte if it is valid in a field value or a reason phrase, else a blank (RFC 9110 §5.5).
fn printable_or_space(byte: u8) -> u8 {
    match byte {
        b'\t' | b' '..=b'~' | 0x80.. => byte,
        _ => b' ',
    }
}

/// Remove carriage returns from the end of a line.
fn trim_carriage_returns(mut line: &[u8]) -> &[u8] {
    while let [rest @ .., b'\r'] = line {
        line = rest;
    }
    line
}

/// Escape the first bytes of something that the upstream sent, for logs and errors.
fn excerpt(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(MAX_EXCERPT)]
        .escape_ascii()
        .to_string()
}

/// The longest head in bytes, as in browsers (curl accepts 300 KiB).
pub const MAX_HEAD: usize = 256 << 10;

/// The most fields of one head, as in curl. A field occupies far more memory than its bytes.
const MAX_FIELDS: usize = 5_000;

/// The longest reason phrase in bytes; the rest is cut.
const MAX_REASON: usize = 512;

/// The most recorded anomalies of one head: enough to recognise the problem.
const MAX_ANOMALIES: usize = 4;

/// The most bytes of an upstream in a log line or error.
const MAX_EXCERPT: usize = 64;

/// The head of a response is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("it does not respond in HTTP/1.1: its first bytes are \"{first}\"{hint}")]
    NotHttp { first: String, hint: Hint },
    #[error("the head of its response is longer than {} KiB", MAX_HEAD >> 10)]
    TooLong,
    #[error("the head of its response has more than {MAX_FIELDS} fields")]
    TooManyFields,
    #[error("its response has no status: its first line is \"{0}\"")]
    Status(String),
    #[error("the field content-length of its response is not the length of a body")]
    Length,
    #[error("its response has content-length fields that contradict each other")]
    Lengths,
    #[error("the field \"{0}\" of its response is malformed, and determines where the body ends")]
    LengthName(String),
    #[error(
        "the field transfer-encoding of its response has the coding \"{0}\", which was not requested"
    )]
    Coding(String),
    #[error("it closed the connection within the head of its response, which starts with \"{0}\"")]
    Cut(String),
}

impl HeadError {
    /// Create a [`HeadError::NotHttp`] with a hint.
    fn not_http(bytes: &[u8]) -> Self {
        Self::NotHttp {
            first: excerpt(bytes),
            hint: Hint::of(bytes),
        }
    }

    /// Create a [`HeadError::LengthName`].
    fn length_name(name: &[u8]) -> Self {
        Self::LengthName(excerpt(name))
    }

    /// Create a [`HeadError::Cut`] from the bytes of the head that were received.
    pub fn cut(bytes: &[u8]) -> Self {
        Self::Cut(excerpt(bytes))
    }
}

/// A guess at the protocol of the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    Tls,
    Http2,
    None,
}

impl Hint {
    /// Guess from the first bytes.
    fn of(bytes: &[u8]) -> Self {
        match bytes {
            // A TLS record: an alert or a handshake message.
            [0x15 | 0x16, 3, 0..=4, ..] => Self::Tls,
            // An HTTP/2 frame on stream 0: SETTINGS or GOAWAY.
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

    fn value<'a>(head: &'a ParsedHead, name: &str) -> &'a str {
        head.fields
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    fn framing(fields: &str) -> Result<Framing, HeadError> {
        let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
        parse(head.as_bytes()).map(|head| head.framing)
    }

    #[test]
    fn folded_lines_are_one_value_even_with_bare_line_feeds() {
        let head = parse(b"HTTP/1.1 200 OK\nA: one;\r\n two\n\t three \nB: 1\n\n").unwrap();

        assert_eq!(
            (value(&head, "a"), value(&head, "b")),
            ("one; two three", "1")
        );
    }

    #[test]
    fn a_name_may_have_a_trailing_blank_and_a_line_without_a_name_is_dropped() {
        let head = parse(b"HTTP/1.1 200 OK\r\nA : 1\r\n: 2\r\nno colon\r\nB(c): 3\r\nD:4\r\n\r\n")
            .unwrap();

        assert_eq!((value(&head, "a"), value(&head, "d")), ("1", "4"));
        assert_eq!(head.fields.len(), 2);
        let names: Vec<_> = head
            .anomalies
            .iter()
            .map(|anomaly| anomaly.name.as_str())
            .collect();
        assert_eq!(names, ["", "no colon", "B(c)"]);
    }

    #[test]
    fn control_characters_become_blanks_so_that_no_field_is_injected() {
        let head =
            parse(b"HTTP/1.1 200 a\x01b\r\nA: 1\rSet-Cookie: x\0y\r\nB: \xe9\r\n\r\n").unwrap();

        assert_eq!(value(&head, "a"), "1 Set-Cookie: x y");
        assert_eq!(head.fields["b"].as_bytes(), b"\xe9");
        assert_eq!((head.fields.len(), head.reason), (2, b"a b".to_vec()));
    }

    #[test]
    fn odd_status_lines_are_read_as_browsers_read_them() {
        let status = |line: &str| {
            let head = parse(format!("{line}\r\n\r\n").as_bytes());
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
    fn chunked_is_one_coding_however_often_it_is_listed() {
        for value in [
            "chunked",
            "Chunked",
            "chunked, chunked",
            "identity, chunked",
            "chunked\r\nTransfer-Encoding: chunked",
        ] {
            let framing = framing(&format!("Transfer-Encoding: {value}\r\n"));
            assert_eq!(framing, Ok(Framing::Chunked));
        }
        let gzip = framing("Transfer-Encoding: gzip, chunked\r\n");
        assert_eq!(gzip, Err(HeadError::Coding("gzip".into())));
        let both = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n";
        let both = parse(both).unwrap();
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
                assert_eq!(part, Ok(HeadScan::Partial), "{head:?} {length}");
            }
            let whole = find_end(bytes.as_bytes(), &mut seen);
            assert_eq!(whole, Ok(HeadScan::Complete(head.len())));
        }
    }

    #[test]
    fn other_protocols_are_shown_with_a_hint() {
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
        let longest = head(MAX_HEAD);
        assert_eq!(
            find_end(longest.as_bytes(), &mut 0),
            Ok(HeadScan::Complete(MAX_HEAD))
        );
        assert!(parse(longest.as_bytes()).is_ok());
        let longer = head(MAX_HEAD + 1);
        assert_eq!(find_end(longer.as_bytes(), &mut 0), Err(HeadError::TooLong));
        let endless = &longer.as_bytes()[..MAX_HEAD + 1];
        assert_eq!(find_end(endless, &mut 0), Err(HeadError::TooLong));
    }
}
