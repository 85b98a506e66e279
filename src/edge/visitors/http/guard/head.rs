//! Validation of a request head (RFC 9112 §2 to §6), stricter than hyper's.

use std::mem::MaybeUninit;

use httparse::{Header, Request, Status};

use super::target::RequestTarget;
use super::verdicts::HeadFacts;
use crate::edge::visitors::http::head_limits::MAX_FIELDS;
use crate::edge::visitors::http::host::Host;
use crate::edge::visitors::http::validate::{content_length, imitates_framing};
use crate::edge::visitors::http::violation::Violation;

/// Framing of the body that follows a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// A body of this many bytes; zero means no body.
    Length(u64),
    Chunked,
}

/// The facts that a request head states about the bytes that follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) framing: Framing,
    pub(crate) facts: HeadFacts,
}

/// Validate a complete head, as `HeadSearch` found it.
pub(crate) fn examine(head: &[u8]) -> Result<Head, Violation> {
    let head = head.strip_prefix(b"\r\n").unwrap_or(head);
    let mut fields = [MaybeUninit::<Header<'_>>::uninit(); MAX_FIELDS];
    let mut request = Request::new(&mut []);
    match request.parse_with_uninit_headers(head, &mut fields) {
        Ok(Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(Violation::MalformedRequestLine),
        Err(err) => return Err(violation(err, &request, head)),
    }
    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return Err(Violation::MalformedRequestLine);
    };
    let target = RequestTarget::parse(method, target.as_bytes())?;
    let fields = Fields::collect(request.headers)?;
    check_host(&target, &fields, version)?;
    let framing = framing(&fields, version)?;
    let facts = HeadFacts {
        // A visitor with a body has more to send in this protocol (RFC 9110 §7.8).
        expects_upgrade: version == 1
            && fields.upgrade
            && fields.connection_upgrade
            && framing == Framing::Length(0),
        takes_informational: version == 1,
    };
    Ok(Head { framing, facts })
}

/// The fields that decide where a request goes and where it ends.
#[derive(Default)]
struct Fields<'a> {
    host: Option<&'a [u8]>,
    length: Option<&'a [u8]>,
    has_coding: bool,
    codings: Codings,
    upgrade: bool,
    connection_upgrade: bool,
}

impl<'a> Fields<'a> {
    fn collect(headers: &[Header<'a>]) -> Result<Self, Violation> {
        let mut fields = Self::default();
        for Header { name, value } in headers {
            let is = |known| name.eq_ignore_ascii_case(known);
            // The length distinguishes most fields before any letter is compared.
            match name.len() {
                4 if is("host") && fields.host.replace(value).is_some() => {
                    return Err(Violation::RepeatedHost);
                }
                7 if is("upgrade") => fields.upgrade = true,
                10 if is("connection") => fields.connection_upgrade |= lists(value, b"upgrade"),
                14 if is("content-length") && fields.length.replace(value).is_some() => {
                    return Err(Violation::RepeatedContentLength);
                }
                17 if is("transfer-encoding") => {
                    fields.has_coding = true;
                    fields.codings.add(value);
                }
                14 | 17 if imitates_framing(name) => return Err(Violation::LookAlikeField),
                _ => {}
            }
        }
        Ok(fields)
    }
}

/// Report whether a comma-separated list contains an option.
fn lists(value: &[u8], option: &[u8]) -> bool {
    value
        .split(|b| *b == b',')
        .any(|listed| listed.trim_ascii().eq_ignore_ascii_case(option))
}

/// The transfer codings of all `Transfer-Encoding` fields, in order.
#[derive(Default)]
struct Codings {
    chunked: usize,
    /// Codings other than `chunked`.
    others: usize,
    malformed: bool,
    ends_chunked: bool,
}

impl Codings {
    fn add(&mut self, value: &[u8]) {
        for coding in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            self.ends_chunked = coding.eq_ignore_ascii_case(b"chunked");
            self.chunked += usize::from(self.ends_chunked);
            self.others += usize::from(!self.ends_chunked);
            // `identity` is gone since RFC 7230, and means different things to different servers.
            self.malformed |= coding.is_empty() || coding.eq_ignore_ascii_case(b"identity");
        }
    }
}

/// Check that the request names one valid host (RFC 9112 §3.2).
fn check_host(
    target: &RequestTarget<'_>,
    fields: &Fields<'_>,
    version: u8,
) -> Result<(), Violation> {
    let Some(field) = fields.host else {
        // HTTP/1.0 does not require a Host. `validate` refuses the request if its target names no
        // host either.
        return if version == 0 {
            Ok(())
        } else {
            Err(Violation::MissingHost)
        };
    };
    let host = Host::parse(field).ok_or(Violation::MalformedHost)?;
    match target {
        RequestTarget::Absolute {
            host: named,
            default_port,
        } if !named.agrees_with(&host, *default_port) => Err(Violation::HostMismatch),
        _ => Ok(()),
    }
}

/// Return the framing of the body (RFC 9112 §6.3), and refuse everything that two servers could
/// read in two ways.
fn framing(fields: &Fields<'_>, version: u8) -> Result<Framing, Violation> {
    if !fields.has_coding {
        let length = fields.length.map_or(Some(0), content_length);
        return length
            .map(Framing::Length)
            .ok_or(Violation::MalformedContentLength);
    }
    let codings = &fields.codings;
    if fields.length.is_some() {
        Err(Violation::ConflictingFraming)
    } else if version == 0 {
        Err(Violation::TransferEncodingOnHttp10)
    } else if codings.malformed || codings.chunked != 1 || !codings.ends_chunked {
        Err(Violation::MalformedTransferEncoding)
    } else if codings.others > 0 {
        Err(Violation::UnsupportedTransferCoding)
    } else {
        Ok(Framing::Chunked)
    }
}

/// Return the violation behind an error of httparse; `request` holds what it could parse.
fn violation(err: httparse::Error, request: &Request<'_, '_>, head: &[u8]) -> Violation {
    match err {
        httparse::Error::TooManyHeaders => Violation::TooManyFields,
        httparse::Error::HeaderName => Violation::MalformedFieldName,
        httparse::Error::HeaderValue => Violation::MalformedFieldValue,
        httparse::Error::NewLine if names_a_version(head) => Violation::MalformedFieldValue,
        httparse::Error::Token if request.method.is_some() => Violation::MalformedTarget,
        httparse::Error::Version if names_a_version(head) => Violation::UnsupportedVersion,
        _ => Violation::MalformedRequestLine,
    }
}

/// Report whether the request line has three words, the last an HTTP version (RFC 9112 §2.3, §3).
fn names_a_version(head: &[u8]) -> bool {
    let line = head.split(|b| *b == b'\n').next().unwrap_or(head);
    let mut words = line.split(|b| *b == b' ');
    let (_method, _target, version) = (words.next(), words.next(), words.next());
    let is_version = matches!(version, Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor, b'\r'])
        if major.is_ascii_digit() && minor.is_ascii_digit());
    is_version && words.next().is_none()
}
