//! Answers that have no end of their own.

use ::http::HeaderMap;
use ::http::header::CONTENT_TYPE;

/// Report whether an answer with these fields goes on for as long as somebody reads it.
pub fn is_event_stream(fields: &HeaderMap) -> bool {
    let media_type = fields
        .get(CONTENT_TYPE)
        .map_or(&b""[..], |value| value.as_bytes());
    let name = media_type.get(..EVENT_STREAM.len());
    name.is_some_and(|name| name.eq_ignore_ascii_case(EVENT_STREAM))
}

const EVENT_STREAM: &[u8] = b"text/event-stream";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_stream_is_known_by_its_type() {
        for (value, is_one) in [
            ("text/event-stream", true),
            ("Text/Event-Stream; charset=utf-8", true),
            ("text/html", false),
        ] {
            let fields = HeaderMap::from_iter([(CONTENT_TYPE, value.parse().unwrap())]);
            assert_eq!(is_event_stream(&fields), is_one, "{value}");
        }
    }
}
