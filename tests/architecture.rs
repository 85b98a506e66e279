//! Modules import one way. The table is the design; an arrow that it does not have fails here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Each module of the crate, and the others that it may name.
const ARROWS: &[(&str, &[&str])] = &[
    (
        "edge",
        &[
            "http",
            "stream",
            "auth",
            "carrier",
            "proto",
            "tls",
            "runtime",
            "state",
            "error_chain",
        ],
    ),
    (
        "agent",
        &[
            "http",
            "stream",
            "auth",
            "carrier",
            "proto",
            "tls",
            "inline",
            "state",
            "error_chain",
        ],
    ),
    ("http", &["stream", "proto", "tls"]),
    ("stream", &["proto", "tls", "error_chain"]),
    ("auth", &["proto", "tls"]),
    ("carrier", &["proto", "tls", "inline"]),
    ("tls", &["state", "text_file"]),
    ("runtime", &["allocator"]),
    ("allocator", &[]),
    ("inline", &[]),
    ("state", &[]),
    ("error_chain", &[]),
    ("text_file", &[]),
    ("proto", &[]),
    // What must hold for any bytes: nothing of it is in the program.
    (
        "fuzzing",
        &["edge", "agent", "carrier", "http", "tls", "text_file"],
    ),
    // The program: it sees the library from outside, as `qtunnel::…`.
    ("cli", &[]),
    ("main", &["cli"]),
];

#[test]
fn modules_import_one_way() {
    let arrows: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    let mut wrong = Vec::new();
    for file in sources(Path::new("src")) {
        let from = module(&file);
        // The front page names every module; that is its purpose.
        if from == "lib" {
            continue;
        }
        let Some(allowed) = arrows.get(from.as_str()) else {
            wrong.push(format!("{}: a module without a row", file.display()));
            continue;
        };
        let text = fs::read_to_string(&file).expect("a source file");
        for (number, line) in text.lines().enumerate() {
            for to in named(line, &arrows) {
                if to != from && !allowed.contains(&to.as_str()) {
                    let (file, number) = (file.display(), number + 1);
                    wrong.push(format!("{file}:{number}: {from} → {to}: {}", line.trim()));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "arrows that are not in the table:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn an_arrow_is_seen_however_it_is_written() {
    let arrows: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    let seen = |line| named(line, &arrows);
    assert_eq!(seen("use crate::edge::Edge;"), ["edge"]);
    assert_eq!(seen("fields: crate::proto::Fields(map),"), ["proto"]);
    assert_eq!(seen("pub(crate) use super::super::agent;"), ["agent"]);
    assert_eq!(seen("use crate::Edge;"), ["Edge"]);
    assert_eq!(seen("use crate::{edge, proto};"), ["{…}"]);
    assert!(seen("//! See [`crate::edge`].").is_empty());
    assert!(seen("pub(crate) use super::frame::Frame;").is_empty());
    assert!(seen("let mycrate::edge = 1;").is_empty());
}

/// What a line names of the crate's root. Links in comments are no imports, and a list in braces
/// cannot be checked line by line, so it is reported as a whole.
fn named(line: &str, modules: &BTreeMap<&str, &[&str]>) -> Vec<String> {
    if line.trim_start().starts_with("//") {
        return Vec::new();
    }
    let after = |prefix: &str| {
        line.match_indices(prefix)
            .filter(|(at, _)| {
                let before = line[..*at].chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
            })
            .map(|(at, _)| word(&line[at + prefix.len()..]))
            .collect::<Vec<_>>()
    };
    let mut named = after("crate::");
    // `super` may reach the root too; below it, few names are those of modules.
    let from_super = after("super::").into_iter();
    named.extend(from_super.filter(|name| modules.contains_key(name.as_str())));
    named
}

fn word(text: &str) -> String {
    if text.starts_with('{') {
        return "{…}".into();
    }
    text.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

/// The first name below `src`: `edge` for `src/edge/visitors/http/guard/head.rs`, `main` for `src/main.rs`.
fn module(file: &Path) -> String {
    let below = file.strip_prefix("src").expect("a file below src");
    let first = below.components().next().expect("a path");
    let first = Path::new(first.as_os_str()).with_extension("");
    first.display().to_string()
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
