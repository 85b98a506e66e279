//! `LIMITS.md` says what the code does: each limit has a row there, with its value.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use qtunnel::EdgeLimits;

/// Where limits are: every constant in here that is a time or a number has a row, or stands in
/// [`NO_LIMITS`]. Of the other files only what the table names is compared.
const PLACES: &[&str] = &[
    "src/edge",
    "src/agent",
    "src/http",
    "src/stream",
    "src/proto",
];

/// The file of the fields that an edge's configuration has.
const FIELDS: &str = "src/edge/limits.rs";

/// Times and numbers that limit nothing: what a format says, or how something is tuned.
const NO_LIMITS: &[(&str, &str)] = &[
    ("src/agent/upstream/read_limit.rs", "CAPPED_READ"),
    ("src/agent/config.rs", "DEFAULT_PORT"),
    ("src/edge/visitors/http/exchange.rs", "FIELD_MEMORY"),
    ("src/edge/handover/message.rs", "CONTROL_MESSAGE_SIZE"),
    ("src/edge/handover/message.rs", "VERSION"),
    ("src/edge/visitors/http/http2/frames.rs", "INITIAL_WINDOW"),
    ("src/edge/visitors/http/http2/connection.rs", "MIN_IDLE"),
    ("src/edge/visitors/http/http2/frames.rs", "CONTINUATION"),
    ("src/edge/visitors/http/http2/frames.rs", "DATA"),
    ("src/edge/visitors/http/http2/frames.rs", "END_HEADERS"),
    ("src/edge/visitors/http/http2/frames.rs", "HEADER_LENGTH"),
    ("src/edge/visitors/http/http2/frames.rs", "HEADERS"),
    ("src/edge/visitors/http/http2/frames.rs", "WINDOW_MASK"),
    ("src/edge/visitors/http/http2/frames.rs", "PREFACE_LENGTH"),
    ("src/edge/visitors/http/http2/frames.rs", "WINDOW_UPDATE"),
    ("src/edge/visitors/http/http2/upgraded.rs", "MAX_WRITE"),
    ("src/edge/visitors/http/validate.rs", "FIELD_OVERHEAD"),
    // Computed from MAX_HEAD.
    ("src/edge/visitors/http/head_limits.rs", "MAX_FIELD_LIST"),
    ("src/edge/visitors/socket.rs", "STALL_CHECKS"),
    ("src/stream/flow/budget.rs", "AMPLE_SHARE"),
    ("src/stream/flow/budget.rs", "NEW_SHARE"),
    ("src/stream/flow/budget.rs", "NEW_WINDOW_SHARE"),
    ("src/stream/flow/budget.rs", "WINDOW_SHARE"),
    ("src/stream/flow/mod.rs", "LOSSY_RATIO"),
    ("src/stream/flow/mod.rs", "MIN_ROUND_TRIP"),
    ("src/stream/flow/mod.rs", "FIRST_UPDATE"),
    ("src/stream/flow/receive_window.rs", "QUICK_ROUND_TRIPS"),
    (
        "src/stream/flow/receive_window.rs",
        "FIRST_QUICK_ROUND_TRIPS",
    ),
    ("src/stream/flow/receive_window.rs", "PROVEN_READER"),
    ("src/stream/flow/receive_window.rs", "SLOW_READER_WINDOW"),
    ("src/stream/flow/receive_window.rs", "UPDATES_PER_WINDOW"),
    ("src/stream/flow/tail.rs", "LOSS_CHECK_MESSAGES"),
    ("src/stream/read_ahead.rs", "SMALL_PIECE"),
    ("src/stream/receive.rs", "MAX_READ"),
    ("src/stream/receive.rs", "SCARCE_READ"),
    ("src/stream/relay.rs", "READ_SIZE"),
    ("src/stream/send.rs", "CONTROL_PRIORITY"),
    ("src/stream/send.rs", "FRESH_BYTES"),
    ("src/stream/send.rs", "STARVATION_TIMEOUT"),
    ("src/proto/codec.rs", "PREFIX"),
    ("src/proto/control.rs", "VARIANTS"),
    ("src/proto/datagrams.rs", "DATAGRAMS_HEADER"),
    ("src/proto/head.rs", "VARIANTS"),
    // One of the limits of heads, by their kind.
    ("src/proto/head.rs", "LIMIT"),
];

/// A file, and the name of a constant or field in it.
type Place = (String, String);

/// A time in milliseconds, or a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    Time(u64),
    Number(u64),
}

#[test]
fn each_limit_has_a_row_with_its_value() {
    let table = table();
    let mut wrong = Vec::new();
    for ((file, name), value) in limits() {
        let place = (file.clone(), name.clone());
        let row = format!(
            "| (what) | {} | (one past it) | `{file}` `{name}` |",
            show(value)
        );
        match table.get(&place) {
            None => wrong.push(format!(
                "LIMITS.md has no row for `{name}` of {file}. Add\n  {row}\n  or, if it limits nothing, \
                 (\"{file}\", \"{name}\") to NO_LIMITS in tests/limits.rs"
            )),
            Some(told) if *told != value => wrong.push(format!(
                "LIMITS.md says {} for `{name}` of {file}, and the code {}",
                show(*told),
                show(value)
            )),
            Some(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_row_has_a_limit_in_the_code() {
    let constants = constants();
    let fields = fields();
    for ((file, name), told) in table() {
        let place = (file.clone(), name.clone());
        let value = match file == FIELDS {
            true => fields.get(&place).copied(),
            false => constants
                .get(&place)
                .and_then(|text| evaluate(text, &constants)),
        };

        assert_eq!(Some(told), value, "`{name}` of {file}, as LIMITS.md has it");
    }
}

#[test]
fn what_is_said_to_be_no_limit_is_there() {
    let constants = constants();
    for (file, name) in NO_LIMITS {
        let place = ((*file).to_owned(), (*name).to_owned());

        assert!(constants.contains_key(&place), "{file} has no {name}");
    }
}

#[test]
fn values_are_read_as_they_are_written() {
    let constants = BTreeMap::from([(
        ("src/a.rs".to_owned(), "LEAST".to_owned()),
        "16 << 10".to_owned(),
    )]);
    let read = |text| evaluate(text, &constants);
    assert_eq!(read("Duration::from_secs(75)"), Some(Value::Time(75_000)));
    assert_eq!(
        read("Duration::from_millis(2_500)"),
        Some(Value::Time(2_500))
    );
    assert_eq!(read("(8 << 10) - 1"), Some(Value::Number(8_191)));
    assert_eq!(read("2 * LEAST"), Some(Value::Number(32_768)));
    assert_eq!(read("0x10"), Some(Value::Number(16)));
    assert_eq!(read("size_of::<usize>()"), None);
    for (text, value) in [
        ("1,024", Value::Number(1_024)),
        ("16 KiB", Value::Number(16_384)),
        ("512 MiB", Value::Number(512 << 20)),
        ("700 ms", Value::Time(700)),
        ("75 s", Value::Time(75_000)),
    ] {
        assert_eq!((told(text), &show(value)[..]), (Some(value), text));
    }
}

/// The rows of the table.
fn table() -> BTreeMap<Place, Value> {
    let text = fs::read_to_string("LIMITS.md").expect("the table");
    let rows = text.lines().filter(|line| line.starts_with("| "));
    rows.filter(|row| !row.starts_with("| limit ") && !row.starts_with("| ---"))
        .map(|row| {
            let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
            let [_what, value, _past, place] = cells[..] else {
                panic!("a row with other than four cells: {row}");
            };
            let value = told(value).unwrap_or_else(|| panic!("not a time or a number: {row}"));
            let mut place = place.split('`').filter(|text| !text.trim().is_empty());
            let (Some(file), Some(name), None) = (place.next(), place.next(), place.next()) else {
                panic!("not a file and a name: {row}");
            };
            ((file.to_owned(), name.to_owned()), value)
        })
        .collect()
}

/// All limits of the code.
fn limits() -> BTreeMap<Place, Value> {
    let constants = constants();
    let here = constants.iter().filter(|((file, name), _)| {
        let is_limit = !NO_LIMITS.contains(&(file.as_str(), name.as_str()));
        is_limit && PLACES.iter().any(|place| file.starts_with(place))
    });
    let mut limits: BTreeMap<_, _> = here
        .map(|(place, text)| {
            let value = evaluate(text, &constants);
            let value = value.unwrap_or_else(|| panic!("{place:?}: cannot read {text:?}"));
            (place.clone(), value)
        })
        .collect();
    limits.extend(fields());
    limits
}

/// The fields of the limits that an edge can be given, with their defaults.
fn fields() -> BTreeMap<Place, Value> {
    let shown = format!("{:?}", EdgeLimits::default());
    let inner = shown
        .strip_prefix("EdgeLimits { ")
        .and_then(|shown| shown.strip_suffix(" }"))
        .expect("a derived Debug");
    let field = |field: &str| {
        let (name, value) = field.split_once(": ").expect("a name and a value");
        let value = match value.strip_suffix("ms").or(value.strip_suffix('s')) {
            Some(time) => {
                let unit = if value.ends_with("ms") { 1.0 } else { 1e3 };
                Value::Time((time.parse::<f64>().expect("a time") * unit).round() as u64)
            }
            None => Value::Number(value.parse().expect("a number")),
        };
        ((FIELDS.to_owned(), name.to_owned()), value)
    };
    inner.split(", ").map(field).collect()
}

/// The constants of the source that are times or numbers, outside of tests, as they are written.
fn constants() -> BTreeMap<Place, String> {
    let mut constants = BTreeMap::new();
    for file in sources(Path::new("src")) {
        let path = file.display().to_string();
        if [
            "/testbed/",
            "/link_model/",
            "/golden/",
            "tests.rs",
            "/tests/",
            "fuzzing.rs",
        ]
        .iter()
        .any(|test| path.contains(test))
        {
            continue;
        }
        let text = fs::read_to_string(&file).expect("a source file");
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or("");
        for (at, _) in text.match_indices("const ") {
            let before = text[..at].rsplit('\n').next().unwrap_or("").trim();
            if !(before.is_empty() || before.starts_with("pub")) {
                continue;
            }
            let item = text[at + "const ".len()..].split(';').next().unwrap_or("");
            let Some((name, rest)) = item.split_once(": ") else {
                continue;
            };
            let Some((kind, value)) = rest.split_once('=') else {
                continue;
            };
            let kind = kind.trim().rsplit("::").next().unwrap_or("");
            if KINDS.contains(&kind) {
                constants.insert((path.clone(), name.to_owned()), value.trim().to_owned());
            }
        }
    }
    constants
}

const KINDS: &[&str] = &["Duration", "usize", "u8", "u16", "u32", "u64", "i32", "i64"];

/// Compute what a constant is, from how it is written.
fn evaluate(text: &str, constants: &BTreeMap<Place, String>) -> Option<Value> {
    let text = text.trim().replace("std::time::", "");
    if let Some((unit, number)) =
        [("from_secs", 1_000), ("from_millis", 1)]
            .iter()
            .find_map(|(name, unit)| {
                let number = text.strip_prefix(&format!("Duration::{name}("))?;
                Some((unit, number.strip_suffix(')')?))
            })
    {
        return match evaluate(number, constants)? {
            Value::Number(number) => Some(Value::Time(number * unit)),
            Value::Time(_) => None,
        };
    }
    let is_name = |text: &str| text.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    if is_name(&text)
        && let Some((_, value)) = constants.iter().find(|((_, name), _)| *name == text)
    {
        return evaluate(value, constants);
    }
    number(&text, constants).map(Value::Number)
}

/// Compute an integer: the operators of the lowest rank first.
fn number(text: &str, constants: &BTreeMap<Place, String>) -> Option<u64> {
    let text = text.trim();
    for operators in [&["<<"][..], &[" + ", " - "], &[" * ", " / "]] {
        let mut depth = 0;
        for (at, character) in text.char_indices().rev() {
            match character {
                ')' => depth += 1,
                '(' => depth -= 1,
                _ => {}
            }
            let found = operators.iter().find(|sign| text[at..].starts_with(**sign));
            if let (0, Some(sign)) = (depth, found) {
                let left = number(&text[..at], constants)?;
                let right = number(&text[at + sign.len()..], constants)?;
                return match sign.trim() {
                    "<<" => Some(left << right),
                    "+" => Some(left + right),
                    "-" => left.checked_sub(right),
                    "*" => Some(left * right),
                    _ => left.checked_div(right),
                };
            }
        }
    }
    if let Some(inner) = text
        .strip_prefix('(')
        .and_then(|text| text.strip_suffix(')'))
    {
        return number(inner, constants);
    }
    let digits = text.replace('_', "");
    if let Some(digits) = digits.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16).ok();
    }
    if let Ok(value) = digits.parse() {
        return Some(value);
    }
    let mut named = constants.iter().filter(|((_, name), _)| name == text);
    number(named.next()?.1, constants)
}

/// Read a value as the table has it.
fn told(text: &str) -> Option<Value> {
    let (number, unit) = text.split_once(' ').unwrap_or((text, ""));
    let number: u64 = number.replace(',', "").parse().ok()?;
    Some(match unit {
        "" => Value::Number(number),
        "KiB" => Value::Number(number << 10),
        "MiB" => Value::Number(number << 20),
        "ms" => Value::Time(number),
        "s" => Value::Time(number * 1_000),
        _ => return None,
    })
}

/// Write a value as the table has it.
fn show(value: Value) -> String {
    match value {
        Value::Time(time) if time % 1_000 == 0 => format!("{} s", time / 1_000),
        Value::Time(time) => format!("{time} ms"),
        Value::Number(number) if number > 0 && number % (1 << 20) == 0 => {
            format!("{} MiB", number >> 20)
        }
        Value::Number(number) if number > 4_096 && number % (1 << 10) == 0 => {
            format!("{} KiB", number >> 10)
        }
        Value::Number(number) if number >= 1_000 => {
            format!("{},{:03}", number / 1_000, number % 1_000)
        }
        Value::Number(number) => number.to_string(),
    }
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            files.push(path);
        }
    }
    files
}
