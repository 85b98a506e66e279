//! Fuzzer of the property that `FUZZ_TARGET` names; see `scripts/fuzz`.

#![no_main]

mod properties;

use std::sync::LazyLock;

use qtunnel::fuzzing::{PROPERTIES, Property};

/// Properties of the wire, which is public.
const WIRE: [(&str, Property); 4] = [
    ("control", |bytes| _ = properties::control(bytes)),
    ("head", |bytes| _ = properties::head(bytes)),
    ("body", |bytes| _ = properties::body(bytes)),
    ("datagrams", |bytes| _ = properties::datagrams(bytes)),
];

static PROPERTY: LazyLock<Property> = LazyLock::new(|| {
    let wanted = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let mut all = WIRE.iter().chain(&PROPERTIES);
    let found = all.find(|(name, _)| *name == wanted);
    found
        .unwrap_or_else(|| panic!("FUZZ_TARGET={wanted} is none of the targets"))
        .1
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| PROPERTY(bytes));
