//! Every field of every message and head has a row in the table of who checks it, and every row a field.

use std::collections::BTreeSet;
use std::fs;

#[test]
fn every_field_of_the_wire_has_its_row() {
    let table = fs::read_to_string("src/proto/fields.md").expect("the table");
    let rows: BTreeSet<_> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(field, _)| field.to_owned())
        .collect();
    let mut fields = BTreeSet::new();
    for file in ["src/proto/control.rs", "src/proto/head.rs"] {
        let source = fs::read_to_string(file).expect("a source file");
        fields.extend(on_the_wire(&source));
    }

    let missing: Vec<_> = fields.difference(&rows).collect();
    let stale: Vec<_> = rows.difference(&fields).collect();

    assert!(missing.is_empty(), "without a row: {missing:#?}");
    assert!(stale.is_empty(), "rows without a field: {stale:#?}");
    assert!(fields.len() > 50, "the sources are read: {fields:#?}");
}

#[test]
fn fields_are_found_in_structs_and_variants() {
    let source = "\
#[derive(Debug, Deserialize)]
pub struct A {
    /// a: b
    #[serde(with = \"x\")]
    pub one: u8,
    pub two: Option<String>,
}

#[derive(Deserialize)]
pub enum B {
    /// Nothing.
    Empty,
    Text(Text),
    #[error(\"{x}\")]
    Named {
        deep: u64,
    },
}

pub struct NotOnTheWire {
    pub three: u8,
}

#[derive(Deserialize)]
pub enum Unit {
    One,
}
";

    let found: Vec<_> = on_the_wire(source).into_iter().collect();

    let expected = [
        "A::one",
        "A::two",
        "B::Empty",
        "B::Named",
        "B::Named::deep",
        "B::Text",
    ];
    assert_eq!(found, expected);
}

/// The fields of structs and the variants of enums that are decoded, without enums whose variants have nothing in
/// them: a value of such a one is checked by being decoded.
fn on_the_wire(source: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut decoded = false;
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("#[derive(") {
            decoded = line.contains("Deserialize");
        }
        let item = line.strip_prefix("pub struct ").map(|rest| (rest, false));
        let item = item.or(line.strip_prefix("pub enum ").map(|rest| (rest, true)));
        let Some((rest, is_enum)) = item else {
            continue;
        };
        if !std::mem::take(&mut decoded) || !rest.ends_with('{') {
            continue;
        }
        let name = rest.split([' ', '{', '<']).next().expect("a name");
        let body: Vec<_> = lines.by_ref().take_while(|line| *line != "}").collect();
        if is_enum
            && !body
                .iter()
                .any(|line| line.contains(['(', '{']) && is_code(line))
        {
            continue;
        }
        let mut variant = None;
        for line in body.into_iter().filter(|line| is_code(line)) {
            let depth = line.len() - line.trim_start().len();
            let word = word(line);
            match (depth, is_enum) {
                (4, _) if word.is_empty() => variant = None,
                (4, _) => {
                    found.insert(format!("{name}::{word}"));
                    variant = Some(word);
                }
                (8, true) => {
                    let variant = variant.as_deref().expect("inside a variant");
                    found.insert(format!("{name}::{variant}::{word}"));
                }
                _ => {}
            }
        }
    }
    found
}

fn is_code(line: &str) -> bool {
    let line = line.trim_start();
    !line.starts_with("//") && !line.starts_with('#') && !line.is_empty()
}

fn word(line: &str) -> String {
    let line = line.trim_start();
    let line = line.strip_prefix("pub ").unwrap_or(line);
    line.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}
