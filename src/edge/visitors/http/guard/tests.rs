//! The guard's verdicts: what passes and what is refused, however the bytes are split.

mod with_hyper;

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::task::Waker;

use proptest::prelude::*;
use proptest::sample::Index;

use super::verdicts::HeadFacts;
use super::*;
use crate::edge::visitors::http::head_limits::{MAX_FIELDS, MAX_TARGET, MAX_TRAILERS};

/// A visitor's connection that delivers the given pieces, and then ends.
struct Pieces(VecDeque<Vec<u8>>);

impl AsyncRead for Pieces {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let pieces = &mut self.get_mut().0;
        if let Some(mut piece) = pieces.pop_front() {
            let rest = piece.split_off(piece.len().min(buf.remaining()));
            buf.put_slice(&piece);
            if !rest.is_empty() {
                pieces.push_front(rest);
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// How reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Eof,
    Silence,
    Error(ErrorKind),
}

/// What hyper and the service see of a connection.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    bytes: Vec<u8>,
    verdicts: Vec<Result<HeadFacts, Violation>>,
    end: End,
}

/// Read a connection that delivers these pieces, into buffers of `capacity` bytes. Upgrades are
/// refused.
fn read_pieces(pieces: Vec<Vec<u8>>, capacity: usize) -> Seen {
    let pieces = pieces
        .into_iter()
        .filter(|piece| !piece.is_empty())
        .collect();
    let (mut guard, verdicts) = Guard::new(Pieces(pieces), &EdgeLimits::default());
    let mut seen = Seen {
        bytes: Vec::new(),
        verdicts: Vec::new(),
        end: End::Eof,
    };
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        let mut storage = vec![0; capacity];
        let mut buf = ReadBuf::new(&mut storage);
        let read = Pin::new(&mut guard).poll_read(&mut cx, &mut buf);
        seen.bytes.extend_from_slice(buf.filled());
        while let Some(verdict) = taken(&verdicts) {
            seen.verdicts.push(verdict);
            verdicts.upgraded(false);
        }
        seen.end = match read {
            Poll::Ready(Ok(())) if buf.filled().is_empty() => End::Eof,
            Poll::Ready(Ok(())) => continue,
            Poll::Ready(Err(err)) => End::Error(err.kind()),
            Poll::Pending => End::Silence,
        };
        return seen;
    }
}

/// Take the next verdict, if there is one.
fn taken(verdicts: &Verdicts) -> Option<Result<HeadFacts, Violation>> {
    Some(verdicts.next()).filter(|verdict| *verdict != Err(Violation::Unexamined))
}

fn read(input: &[u8]) -> Seen {
    read_pieces(vec![input.to_vec()], 1 << 16)
}

/// Assert that a head is refused, and that hyper sees nothing of it.
#[track_caller]
fn refused(head: impl AsRef<[u8]>, violation: Violation) {
    let seen = read(head.as_ref());
    let text = String::from_utf8_lossy(head.as_ref());

    assert_eq!(seen.verdicts, [Err(violation)], "{:.200}", text);
    assert_eq!(seen.bytes, SUBSTITUTE, "{:.200}", text);
    assert_eq!(seen.end, End::Silence, "{:.200}", text);
}

/// Assert that all bytes pass, as this many requests.
#[track_caller]
fn passes(input: impl AsRef<[u8]>, requests: usize) {
    let seen = read(input.as_ref());

    assert!(
        seen.bytes == input.as_ref(),
        "{:.300}",
        String::from_utf8_lossy(&seen.bytes)
    );
    assert!(
        seen.verdicts.len() == requests && seen.verdicts.iter().all(is_plain),
        "{:?}",
        seen.verdicts
    );
    assert_eq!(seen.end, End::Eof);
}

fn is_plain(verdict: &Result<HeadFacts, Violation>) -> bool {
    verdict.is_ok_and(|facts| !facts.expects_upgrade)
}

/// Assert that a body is broken after these bytes of it.
#[track_caller]
fn breaks(sound: &str, broken: &str) {
    let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let seen = read(format!("{head}{sound}{broken}").as_bytes());

    assert_eq!(
        String::from_utf8_lossy(&seen.bytes),
        format!("{head}{sound}")
    );
    assert_eq!(seen.verdicts, [Ok(PLAIN)]);
    assert_eq!(seen.end, End::Error(ErrorKind::InvalidData));
}

/// Make a GET with these lines after its `Host`.
fn with(lines: &str) -> String {
    format!("GET / HTTP/1.1\r\nhost: a\r\n{lines}\r\n\r\n")
}

/// Make a request for this target.
fn to(method: &str, target: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nhost: a\r\n\r\n")
}
const PLAIN: HeadFacts = HeadFacts {
    expects_upgrade: false,
    takes_informational: true,
};
const SUBSTITUTE: &[u8] = b"GET / HTTP/1.1\r\nhost: invalid\r\nconnection: close\r\n\r\n";

#[test]
fn a_line_of_a_head_ends_in_cr_lf() {
    refused("GET / HTTP/1.1\nhost: a\r\n\r\n", Violation::BareLineFeed);
    refused("GET / HTTP/1.1\r\nhost: a\n\r\n", Violation::BareLineFeed);
    refused("GET / HTTP/1.1\r\nhost: a\r\n\n", Violation::BareLineFeed);
    refused(
        "\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
        Violation::BareLineFeed,
    );
    refused(
        "GET / HTTP/1.1\r\nhost: a\r\nx: a\rb\r\n\r\n",
        Violation::MalformedFieldValue,
    );
    refused(
        "GET / HTTP/1.1\rX\r\nhost: a\r\n\r\n",
        Violation::MalformedRequestLine,
    );
}

#[test]
fn one_empty_line_may_come_before_a_request() {
    passes(
        "\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
        2,
    );
    refused(
        "\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
        Violation::MalformedRequestLine,
    );
}

#[test]
fn a_request_line_is_a_method_a_target_and_a_version() {
    for line in [
        "GET /",
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        " GET / HTTP/1.1",
        "G(T / HTTP/1.1",
        "GET /\tHTTP/1.1",
        "GET / HTTP/1.1x",
        "GET / http/1.1",
        "GET / a b HTTP/1.1",
        "GET / HTTPS/1.1",
        "/ HTTP/1.1",
    ] {
        let seen = read(format!("{line}\r\nhost: a\r\n\r\n").as_bytes());
        assert!(
            matches!(
                seen.verdicts[..],
                [Err(
                    Violation::MalformedRequestLine | Violation::MalformedTarget
                )]
            ),
            "{line}: {:?}",
            seen.verdicts,
        );
    }
    refused("\x16\x03\x01\x02", Violation::MalformedRequestLine);
}

#[test]
fn versions_other_than_1_0_and_1_1_are_refused() {
    for version in ["HTTP/2.0", "HTTP/1.2", "HTTP/0.9", "HTTP/3.0"] {
        refused(
            format!("GET / {version}\r\nhost: a\r\n\r\n"),
            Violation::UnsupportedVersion,
        );
    }
    refused(
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        Violation::UnsupportedVersion,
    );
}

#[test]
fn a_target_is_a_path_or_an_http_url() {
    for target in [
        "/",
        "/a%2Fb/../c;d?e=%20&{f}|g",
        "/é",
        "//a",
        "http://a",
        "HTTP://A/b",
        "https://a:443/?x",
    ] {
        passes(to("GET", target), 1);
    }
    for target in [
        "a",
        "/a#b",
        "/<a>",
        "/a?\"",
        "/a?#",
        "ftp://a/",
        "http:/a",
        "http://",
        "http://u@a/",
        "/\x7f",
    ] {
        refused(to("GET", target), Violation::MalformedTarget);
    }
    refused(
        b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n",
        Violation::MalformedTarget,
    );
    passes(to("OPTIONS", "*"), 1);
    refused(to("GET", "*"), Violation::AsteriskTarget);
    refused(to("CONNECT", "a:443"), Violation::Connect);
}

#[test]
fn a_request_names_one_host() {
    refused("GET / HTTP/1.1\r\n\r\n", Violation::MissingHost);
    refused("GET http://a/ HTTP/1.1\r\n\r\n", Violation::MissingHost);
    refused(with("Host: a"), Violation::RepeatedHost);
    for host in ["", "a b", "a,b", "u@a", "a:b", "a/", "[::1"] {
        refused(
            format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n"),
            Violation::MalformedHost,
        );
    }
    refused(to("GET", "http://b/"), Violation::HostMismatch);
    refused(to("GET", "http://a:8080/"), Violation::HostMismatch);
    passes("GET / HTTP/1.0\r\n\r\n", 1);
}

#[test]
fn a_field_is_a_name_a_colon_and_a_value() {
    for line in ["x : y", "x\t: y", ": y", "x", "x(: y", "x\0: y", "é: y"] {
        refused(with(line), Violation::MalformedFieldName);
    }
    for line in ["x: a\0b", "x: \x01", "x: \x7f", "x: \x0b"] {
        refused(with(line), Violation::MalformedFieldValue);
    }
    refused(with("x: a\r\n b"), Violation::FoldedField);
    refused("GET / HTTP/1.1\r\n host: a\r\n\r\n", Violation::FoldedField);
    passes(with("x:\r\ny: \t b \t\r\nz: \u{e9}"), 1);
}

#[test]
fn a_transfer_encoding_is_chunked_and_nothing_else() {
    for value in [
        "chunked, chunked",
        "identity",
        "chunked, identity",
        "identity, chunked",
        "",
        ", chunked",
        "chunked,",
    ] {
        refused(
            with(&format!("transfer-encoding: {value}")),
            Violation::MalformedTransferEncoding,
        );
    }
    for value in [
        "gzip",
        "chunked, gzip",
        "xchunked",
        "chunked;q=1",
        "\"chunked\"",
        "chunked chunked",
    ] {
        refused(
            with(&format!("transfer-encoding: {value}")),
            Violation::MalformedTransferEncoding,
        );
    }
    let twice = "transfer-encoding: chunked\r\nTransfer-Encoding: chunked";
    refused(with(twice), Violation::MalformedTransferEncoding);
    refused(
        with("transfer-encoding: gzip, chunked"),
        Violation::UnsupportedTransferCoding,
    );
    let old = "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    refused(old, Violation::TransferEncodingOnHttp10);
}

#[test]
fn a_request_has_one_content_length_or_a_transfer_encoding() {
    refused(
        with("content-length: 0\r\ntransfer-encoding: chunked"),
        Violation::ConflictingFraming,
    );
    refused(
        with("transfer-encoding: chunked\r\ncontent-length: 0"),
        Violation::ConflictingFraming,
    );
    refused(
        with("content-length: 1\r\nContent-Length: 1"),
        Violation::RepeatedContentLength,
    );
    for value in ["1, 1", "+1", "-1", "0x1", "", "1 1", "9999999999999999999"] {
        refused(
            with(&format!("content-length: {value}")),
            Violation::MalformedContentLength,
        );
    }
}

#[test]
fn framing_fields_are_not_spelt_with_underscores() {
    refused(with("content_length: 1"), Violation::LookAlikeField);
    refused(
        with("Transfer_Encoding: chunked"),
        Violation::LookAlikeField,
    );
    passes(with("session_id: 1"), 1);
}

#[test]
fn a_head_passes_at_each_limit_and_is_refused_one_past_it() {
    let head = |length: usize| with(&format!("x: {}", "y".repeat(length - with("x: ").len())));
    passes(head(MAX_HEAD), 1);
    refused(head(MAX_HEAD + 1), Violation::HeadTooLarge);

    let target = |length: usize| to("GET", &format!("/{}", "a".repeat(length - 1)));
    passes(target(MAX_TARGET), 1);
    refused(target(MAX_TARGET + 1), Violation::TargetTooLong);
    refused(target(MAX_HEAD), Violation::TargetTooLong);

    let fields = |count: usize| with(&vec!["x: y"; count - 1].join("\r\n"));
    passes(fields(MAX_FIELDS), 1);
    refused(fields(MAX_FIELDS + 1), Violation::TooManyFields);
}

#[test]
fn each_violation_has_a_status() {
    for (violation, status) in [
        (Violation::BareLineFeed, 400),
        (Violation::HeadTooSlow, 408),
        (Violation::TargetTooLong, 414),
        (Violation::HeadTooLarge, 431),
        (Violation::TooManyFields, 431),
        (Violation::UnsupportedTransferCoding, 501),
        (Violation::UnsupportedVersion, 505),
    ] {
        assert_eq!(violation.status(), status, "{violation}");
    }
}

#[test]
fn requests_follow_each_other_on_one_connection() {
    let input = [
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nGET /",
        "PUT / HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: Chunked\r\n\r\n",
        "5 ;x=\"y\"\r\nGET /\r\n00A\r\n0123456789\r\n0\r\nx-sum: 7\r\ny:\r\n\r\n",
        "DELETE /1 HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
    ];
    passes(input.concat(), 5);
}

#[test]
fn a_bad_request_behind_good_ones_is_refused_alone() {
    let good = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc";
    let seen = read(
        format!("{good}GET / HTTP/1.1\r\n\r\nGET /next HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes(),
    );

    assert_eq!(seen.verdicts, [Ok(PLAIN), Err(Violation::MissingHost)]);
    assert_eq!(seen.bytes, [good.as_bytes(), SUBSTITUTE].concat());
    assert_eq!(seen.end, End::Silence);
}

#[test]
fn the_substitute_keeps_head_and_a_harmless_accept() {
    let head = read(b"HEAD / HTTP/1.1\r\nACCEPT:  application/json\t\r\n\r\n");
    let hostile = read(b"GET / HTTP/1.1\r\naccept: \x80\r\n\r\n");

    let expected =
        "HEAD / HTTP/1.1\r\nhost: invalid\r\nconnection: close\r\naccept:application/json\r\n\r\n";
    assert_eq!(String::from_utf8_lossy(&head.bytes), expected);
    assert_eq!(hostile.bytes, SUBSTITUTE);
}

#[test]
fn the_framing_of_chunks_is_strict() {
    breaks("", "\r\n");
    breaks("", "g\r\n");
    breaks("", "-1\r\n");
    breaks("", ";x\r\n");
    breaks("1", "\n");
    breaks("1 ", "\r\n");
    breaks("1\r", "x");
    breaks("1;x", "\n");
    breaks("1;x", "\0");
    breaks("1\r\na", "\n");
    breaks("1\r\na", "b\r\n");
    breaks("1\r\na\r", "\r");
    breaks("0\r\n", "\n");
    breaks("0\r\n\r", "x");
    breaks("0000000000000001", "0\r\n");
    breaks("f0000000000000000"[..16].into(), "0");
}

#[test]
fn trailers_are_strict_and_bounded() {
    breaks("0\r\n", " x: y\r\n");
    breaks("0\r\nx", " : y\r\n");
    breaks("0\r\nx: y", "\n");
    breaks("0\r\nx: y", "\0");
    breaks("0\r\nx: y\r", "x");
    breaks("0\r\n", ": y");
    let trailers = |count: usize| format!("0\r\n{}", "x:\r\n".repeat(count));
    breaks(&trailers(MAX_TRAILERS), "x");
    passes(
        format!(
            "{}{}\r\n",
            with("transfer-encoding: chunked"),
            trailers(MAX_TRAILERS)
        ),
        1,
    );
    let long = "y".repeat((8 << 10) - 1);
    breaks(&format!("0\r\nx:{long}"), "y");
}

#[test]
fn chunk_extensions_are_bounded_over_the_whole_body() {
    let chunk = format!("1;{}\r\na\r\n", "x".repeat(1 << 10));

    breaks(&format!("{}1;", chunk.repeat(8)), "x");
}

/// Messages of every kind, valid and invalid, that are concatenated.
const MESSAGES: [&str; 14] = [
    "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET http://a/b HTTP/1.1\r\nhost: a\r\naccept: text/html\r\n\r\n",
    "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 40\r\n\r\n0123456789012345678901234567890123456789",
    "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n",
    "PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1f\r\n\r\n\r\n0\r\n\r\n0123456789012345678901\r\n0\r\n\r\n",
    "\r\nGET / HTTP/1.0\r\n\r\n",
    "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    "POST / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: 2\r\n\r\nhi",
    "GET / HTTP/1.1\r\nhost: a\r\naccept: text/html\r\nx: y\n\r\n",
    "GET / HTTP/1.1\r\naccept: text/html\r\n\r\n",
    "GET / HTTP/9.9\r\nhost: a\r\n\r\n",
    "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcd\r\n",
    "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
    "GET / HTT",
];

/// Number of messages at the start that are valid, none of which asks for an upgrade.
const GOOD_MESSAGES: usize = 6;

fn cut(mut input: Vec<u8>, cuts: &[Index]) -> Vec<Vec<u8>> {
    let mut places: Vec<_> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
    places.sort_unstable();
    let mut pieces: Vec<_> = places
        .into_iter()
        .rev()
        .map(|place| input.split_off(place))
        .collect();
    pieces.push(input);
    pieces.reverse();
    pieces
}

proptest! {
    #[test]
    fn any_split_of_the_bytes_is_seen_alike(
        messages in prop::collection::vec(0..MESSAGES.len(), 1..6),
        changes in prop::collection::vec((any::<Index>(), any::<u8>()), 0..3),
        cuts in prop::collection::vec(any::<Index>(), 0..24),
        capacity in 1..200usize,
    ) {
        let mut input: Vec<u8> = messages.iter().flat_map(|message| MESSAGES[*message].bytes()).collect();
        for (place, byte) in changes {
            let place = place.index(input.len());
            input[place] = byte;
        }
        let whole = read(&input);

        prop_assert_eq!(read_pieces(cut(input.clone(), &cuts), 1 << 16), whole);
        let whole = read(&input);
        prop_assert_eq!(read_pieces(cut(input, &cuts), capacity), whole);
    }

    #[test]
    fn good_messages_pass_unchanged(
        messages in prop::collection::vec(0..GOOD_MESSAGES, 1..8),
        cuts in prop::collection::vec(any::<Index>(), 0..24),
        capacity in 1..200usize,
    ) {
        let input: Vec<u8> = messages.iter().flat_map(|message| MESSAGES[*message].bytes()).collect();

        let seen = read_pieces(cut(input.clone(), &cuts), capacity);

        prop_assert!(seen.verdicts.len() == messages.len() && seen.verdicts.iter().all(is_plain));
        prop_assert_eq!((seen.bytes, seen.end), (input, End::Eof));
    }
}
