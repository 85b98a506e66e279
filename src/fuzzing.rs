//! Properties that hold for any bytes from a visitor, an upstream, a proxy, a peer or a file. They are those of private
//! modules, for the fuzz targets and for the test that replays their corpora; those of the wire are in
//! `fuzz/properties.rs`.

use crate::agent::fuzzing::{files, origins, response};
use crate::carrier::fuzzing::{handshake, packet_header, proxy, websocket_frames};
use crate::edge::fuzzing::{
    first_bytes, guard, handover, host, http2_frames, http2_request, lease_file,
};
use crate::http::fuzzing::{fields, parse, text, upgrades};
use crate::text_file::decode;
use crate::tls::fuzzing::certificate;

/// A check that panics where a property does not hold for the bytes.
pub type Property = fn(&[u8]);

/// The properties, by the names of their targets.
pub const PROPERTIES: [(&str, Property); 17] = [
    ("certificate", certificate),
    ("fields", |bytes| {
        fields(bytes);
        handshake(&parse(bytes));
    }),
    ("files", files),
    ("first_bytes", first_bytes),
    ("guard", guard),
    ("handover", |bytes| {
        handover(bytes);
        packet_header(bytes);
    }),
    ("host", host),
    ("http2_frames", http2_frames),
    ("http2_request", http2_request),
    ("lease_file", lease_file),
    ("origins", origins),
    ("proxy", proxy),
    ("response", response),
    ("text", text),
    ("text_file", |bytes| {
        if let Ok(text) = std::str::from_utf8(bytes) {
            // The same text, as PowerShell writes it.
            let units = "\u{feff}".encode_utf16().chain(text.encode_utf16());
            let wide: Vec<u8> = units.flat_map(u16::to_le_bytes).collect();
            let narrow = ["\u{feff}", text].concat();
            assert_eq!(decode(&wide), decode(narrow.as_bytes()));
        }
        let _ = decode(bytes);
    }),
    ("upgrades", upgrades),
    ("websocket_frames", websocket_frames),
];

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::PROPERTIES;

    #[test]
    fn every_property_holds_for_its_corpus() {
        for (name, property) in PROPERTIES {
            let corpus = Path::new("fuzz/corpus").join(name);
            let mut seeds = 0;
            for entry in fs::read_dir(&corpus).expect("a corpus") {
                let path = entry.expect("an entry").path();
                property(&fs::read(&path).expect("a file"));
                seeds += 1;
            }
            assert!(seeds > 0, "{} is empty", corpus.display());
            property(b"");
        }
    }
}
