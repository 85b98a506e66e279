//! Modules import one way, and files not in circles. The table is the design; an arrow that it does not have fails
//! here.

use std::collections::{BTreeMap, BTreeSet};
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
            "net",
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
            "net",
            "proto",
            "tls",
            "state",
            "error_chain",
        ],
    ),
    ("stream", &["http", "proto", "tls", "error_chain"]),
    ("http", &["proto", "tls"]),
    ("auth", &["proto", "tls"]),
    ("carrier", &["net", "proto", "tls"]),
    // Sockets and addresses, whoever uses them.
    ("net", &[]),
    ("tls", &["state", "text_file"]),
    ("runtime", &["allocator"]),
    ("allocator", &[]),
    ("state", &[]),
    ("error_chain", &[]),
    ("text_file", &[]),
    ("proto", &[]),
    // Properties that hold for any bytes, which are not part of the program.
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

/// The path of a module: `["carrier", "agent", "dial"]`.
type Module = Vec<String>;

/// Files that import each other can only be understood together. A parent and its children may: they are
/// one unit anyway.
#[test]
fn no_files_import_each_other_in_a_circle() {
    let imports = imports_of_files(&production_sources());
    let mut circles = Vec::new();
    for (from, to) in &imports {
        for to in to.iter().filter(|to| leads_to(&imports, to, from)) {
            circles.push(format!("{} → {}", from.join("/"), to.join("/")));
        }
    }
    assert!(circles.is_empty(), "circles:\n{}", circles.join("\n"));
}

/// Report whether the imports of one file, and those of the imported files, lead to another.
fn leads_to(imports: &BTreeMap<Module, BTreeSet<Module>>, start: &Module, end: &Module) -> bool {
    let (mut seen, mut next) = (BTreeSet::from([start]), vec![start]);
    while let Some(file) = next.pop() {
        next.extend(imports[file].iter().filter(|import| seen.insert(import)));
    }
    seen.contains(end)
}

#[test]
fn an_import_leads_to_the_file_that_defines_it() {
    let source = |module: &str, code: &str| (path(module), code.to_owned());
    let sources = BTreeMap::from([
        source("a", "pub use self::inner::Thing;"),
        source("a::inner", "pub struct Thing;"),
        source("b", "use crate::{\n    a::{Thing as Other, Unknown},\n};"),
        source("c::d", "use super::e::Value;\nfn f() -> crate::b::B {}"),
        source("c::e", "use std::io;"),
    ]);
    let imports = imports_of_files(&sources);
    let of = |module: &str| imports[&path(module)].iter().cloned().collect::<Vec<_>>();
    assert_eq!(of("a"), Vec::<Module>::new(), "its own child");
    assert_eq!(of("b"), [path("a"), path("a::inner")]);
    assert_eq!(of("c::d"), [path("b"), path("c::e")]);
    assert!(of("c::e").is_empty());
}

fn path(text: &str) -> Module {
    text.split("::")
        .map(|name| name.trim().to_owned())
        .collect()
}

/// The code of each file by its module, without comments and tests.
fn production_sources() -> BTreeMap<Module, String> {
    let (mut sources_by_module, mut tests) = (BTreeMap::new(), Vec::new());
    for file in sources(Path::new("src")) {
        let below = file.strip_prefix("src").expect("a file below src");
        let names = below.with_extension("");
        let names = names
            .components()
            .map(|name| name.as_os_str().display().to_string());
        let mut module: Module = names.collect();
        module.pop_if(|name| name == "mod" || name == "lib");
        let text = fs::read_to_string(&file).expect("a source file");
        let lines = text
            .lines()
            .map(|line| line.split("//").next().unwrap_or(line));
        let mut code = lines.collect::<Vec<_>>().join("\n");
        if let Some(at) = code.find("\n#[cfg(test)]\nmod tests {") {
            code.truncate(at);
        }
        for declared in code.split("#[cfg(test)]\nmod ").skip(1) {
            let mut test = module.clone();
            test.push(word(declared));
            tests.push(test);
        }
        sources_by_module.insert(module, code);
    }
    // The properties for fuzzing are tests, too.
    let is_fuzzing = |module: &Module| module.last().is_some_and(|name| name == "fuzzing");
    sources_by_module.retain(|module, _| {
        !is_fuzzing(module) && !tests.iter().any(|test| module.starts_with(test))
    });
    sources_by_module
}

/// The files that each file names, other than its parents and children.
fn imports_of_files(sources: &BTreeMap<Module, String>) -> BTreeMap<Module, BTreeSet<Module>> {
    let absolute = |from: &Module, import: &[String]| {
        let mut child = from.clone();
        child.push(import[0].clone());
        let (mut base, mut rest) = match import[0].as_str() {
            "crate" => (Module::new(), &import[1..]),
            "self" => (from.clone(), &import[1..]),
            "super" => (from.clone(), import),
            _ if sources.contains_key(&child) => (from.clone(), import),
            _ => return None,
        };
        while rest.first().is_some_and(|name| name == "super") {
            base.pop();
            rest = &rest[1..];
        }
        Some([&base, rest].concat())
    };
    let mut reexports = BTreeMap::new();
    for (module, code) in sources {
        for (_, import, name) in uses(code).into_iter().filter(|(public, ..)| *public) {
            if let Some(defined) = absolute(module, &import) {
                reexports.insert([&module[..], &[name]].concat(), defined);
            }
        }
    }
    let file = |import: Module| {
        let mut import = import;
        loop {
            let length = (0..=import.len()).rev();
            let length = length
                .into_iter()
                .find(|n| sources.contains_key(&import[..*n]))?;
            let item = &import[..import.len().min(length + 1)];
            match reexports.get(item) {
                Some(defined) if item.len() > length => {
                    import = [defined, &import[item.len()..]].concat();
                }
                _ => return Some(import[..length].to_vec()),
            }
        }
    };
    let imports = sources.iter().map(|(from, code)| {
        let private = uses(code).into_iter().filter(|(public, ..)| !public);
        let named = private
            .map(|(_, import, _)| import)
            .chain(named_paths(code));
        let absolute = named.filter_map(|import| absolute(from, &import));
        let files = absolute.filter_map(file);
        let others = files.filter(|to| !to.starts_with(from) && !from.starts_with(to));
        (from.clone(), others.collect())
    });
    imports.collect()
}

/// Every `use`: whether it re-exports, the path, and the name that it introduces.
fn uses(code: &str) -> Vec<(bool, Module, String)> {
    let statements = code.match_indices("use ").filter_map(|(at, _)| {
        let line = code[..at].rfind('\n').map_or(0, |end| end + 1);
        let before = code[line..at].trim();
        let tree = code[at + "use ".len()..].split(';').next()?;
        let is_use = before.is_empty() || before.starts_with("pub");
        is_use.then_some((!before.is_empty(), tree))
    });
    let expanded = statements.flat_map(|(public, tree)| {
        let imports = expand("", tree).into_iter();
        imports.map(move |(import, name)| (public, import, name))
    });
    expanded.collect()
}

/// The paths of a `use` tree, and the name that each introduces.
fn expand(prefix: &str, tree: &str) -> Vec<(Module, String)> {
    let Some((head, list)) = tree.split_once('{') else {
        let (import, name) = tree.split_once(" as ").unwrap_or((tree, tree));
        let name = name.rsplit("::").next().unwrap_or(name).trim();
        return vec![(path(&format!("{prefix}{}", import.trim())), name.to_owned())];
    };
    let list = list.rsplit_once('}').map_or(list, |(list, _)| list);
    let prefix = format!("{prefix}{}", head.trim());
    let mut depth = 0;
    let members = list.split(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    let members = members.filter(|member| !member.trim().is_empty());
    members.flat_map(|member| expand(&prefix, member)).collect()
}

/// The paths from `crate` and `super` that the code names outside `use`, too.
fn named_paths(code: &str) -> impl Iterator<Item = Module> {
    let starts = ["crate::", "super::"]
        .into_iter()
        .flat_map(|start| code.match_indices(start));
    let starts = starts.filter(|(at, _)| {
        let before = code[..*at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    });
    starts.map(|(at, _)| {
        let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        let named = code[at..].split(|c| !is_path(c)).next().unwrap_or_default();
        path(named.trim_end_matches(':'))
    })
}
