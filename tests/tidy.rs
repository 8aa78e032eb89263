//! The architecture, held as a test: which module may import which, where third-party names stay, how long files may be.
//!
//! It needs nothing but the source text. The scanner below knows just enough Rust for that: it blanks comments and literals,
//! and reads `use` trees and paths. It is tested on samples first, so that it cannot pass by seeing nothing.
//!
//! **Exceptions** go into [`EXCEPTIONS`], each with its reason.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Who may import whom. A module may always import itself; `app` everything but `bin`.
const MAY_IMPORT: [(&str, &[&str]); 17] = [
    ("base", &[]),
    ("model", &["base"]),
    ("payload", &["base"]),
    ("object", &["base", "model"]),
    ("repo", &["base", "model", "object"]),
    ("foreign", &["base", "model", "payload", "object", "repo"]),
    ("cache", &["base", "model"]),
    ("driver", &["base", "model", "payload"]),
    ("read", &["base", "model", "repo", "cache"]),
    ("node", &["base", "model", "payload", "repo", "driver"]),
    ("fs", &["base", "model", "payload", "repo", "read"]),
    ("agent", &["base", "model"]),
    ("fuse", &["base", "model", "fs"]),
    ("cluster", &["base", "model", "repo", "agent"]),
    (
        "app",
        &[
            "base", "model", "payload", "object", "repo", "foreign", "cache", "driver", "read", "node", "fs", "agent", "fuse",
            "cluster",
        ],
    ),
    ("bin", &["app"]),
    // The map: it declares the modules and imports nothing.
    ("lib", &[]),
];

/// Names of other packages, and the beginnings of the paths below `src` where they may stand.
const THIRD_PARTY: [(&str, &[&str]); 14] = [
    ("fuser", &["fuse/"]),
    ("aws_sdk_s3", &["object/s3"]),
    ("aws_config", &["object/s3"]),
    ("aws_smithy_types", &["object/s3"]),
    ("redis", &["driver/redis"]),
    ("lru", &["cache/"]),
    ("axum", &["agent/"]),
    ("axum_server", &["agent/"]),
    ("hyper_util", &["agent/", "driver/dynomite/admin"]),
    ("hyper_rustls", &["agent/"]),
    ("http_body_util", &["agent/", "driver/dynomite/admin"]),
    ("clap", &["app/", "bin/"]),
    ("clap_complete", &["app/", "bin/"]),
    ("clap_mangen", &["app/", "bin/"]),
];

/// Arrows that the table does not have: file below `src`, module, reason.
const EXCEPTIONS: [(&str, &str, &str); 0] = [];

const PRODUCTION_LINES_MAX: usize = 500;

/// Comments, strings and characters as blanks, line by line as it was.
fn blanked(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    while at < bytes.len() {
        let rest = &source[at..];
        let is_fresh = at == 0 || !is_word(bytes[at - 1]);
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if is_fresh && raw_string(rest).is_some() {
            raw_string(rest).unwrap_or(1)
        } else if rest.starts_with('"') {
            quoted(rest)
        } else if rest.starts_with('\'') {
            character(rest)
        } else {
            0
        };
        if length == 0 {
            out.push(if bytes[at].is_ascii() { bytes[at] } else { b'?' });
            at += 1;
        } else {
            out.extend(bytes[at..at + length].iter().map(|byte| if *byte == b'\n' { b'\n' } else { b' ' }));
            at += length;
        }
        while at < bytes.len() && !source.is_char_boundary(at) {
            at += 1;
        }
    }
    String::from_utf8(out).expect("only ASCII was pushed")
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    let bytes = rest.as_bytes();
    while at < bytes.len() {
        match &bytes[at..bytes.len().min(at + 2)] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    bytes.len()
}

/// `r"…"`, `r#"…"#`, `br"…"`: the length, if it is one.
fn raw_string(rest: &str) -> Option<usize> {
    let inner = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = inner.bytes().take_while(|byte| *byte == b'#').count();
    let content = inner[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let start = rest.len() - content.len();
    Some(content.find(&end).map_or(rest.len(), |found| start + found + end.len()))
}

fn quoted(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// A character literal; 0 for a lifetime.
fn character(rest: &str) -> usize {
    let mut characters = rest.char_indices().skip(1);
    match characters.next() {
        Some((_, '\\')) => rest[3..].find('\'').map_or(0, |end| end + 4),
        Some(_) => characters.next().filter(|(_, after)| *after == '\'').map_or(0, |(at, _)| at + 1),
        None => 0,
    }
}

/// Words, `::` and single signs.
fn tokens(blanked: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = blanked.trim_start();
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let length = if word > 0 {
            word
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        tokens.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    tokens
}

fn is_word(token: &str) -> bool {
    token.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
}

/// What a source text refers to.
#[derive(Debug, Default)]
struct References {
    /// Every path of two words or more, and every imported one, `use` trees unfolded.
    paths: BTreeSet<Vec<String>>,
    /// Names that stand for something of this package: declared modules, and what is imported from it.
    own: BTreeSet<String>,
}

fn references(source: &str) -> References {
    let blanked = blanked(source);
    let tokens = tokens(&blanked);
    let mut found = References::default();
    let mut at = 0;
    while at < tokens.len() {
        let before = if at == 0 { "" } else { tokens[at - 1] };
        if tokens[at] == "mod" && tokens.get(at + 1).is_some_and(|name| is_word(name)) {
            found.own.insert(tokens[at + 1].to_owned());
            at += 2;
        } else if tokens[at] == "use" && before != "#" {
            at = use_tree(&tokens, at + 1, &mut Vec::new(), &mut found);
        } else if is_word(tokens[at]) && before != "::" && before != "." {
            let mut path = vec![tokens[at].to_owned()];
            while tokens.get(at + 1) == Some(&"::") && tokens.get(at + 2).is_some_and(|next| is_word(next)) {
                path.push(tokens[at + 2].to_owned());
                at += 2;
            }
            if path.len() > 1 {
                found.paths.insert(path);
            }
            at += 1;
        } else {
            at += 1;
        }
    }
    found
}

/// Unfolds one branch of a `use` tree that begins at `at`; returns where it ends.
fn use_tree(tokens: &[&str], mut at: usize, above: &mut Vec<String>, found: &mut References) -> usize {
    let depth = above.len();
    while at < tokens.len() {
        match tokens[at] {
            "::" => at += 1,
            "{" => {
                at += 1;
                while at < tokens.len() && tokens[at] != "}" {
                    at = use_tree(tokens, at, above, found);
                    at += usize::from(tokens.get(at) == Some(&","));
                }
                above.truncate(depth);
                return at + 1;
            }
            "as" => {
                take(above, tokens.get(at + 1).copied(), found);
                above.truncate(depth);
                return at + 2;
            }
            word if is_word(word) || word == "*" => {
                above.push(word.to_owned());
                at += 1;
            }
            _ => break,
        }
    }
    if above.len() > depth {
        take(above, None, found);
    }
    above.truncate(depth);
    at
}

fn take(path: &[String], renamed: Option<&str>, found: &mut References) {
    let is_own = path.first().is_some_and(|first| ["crate", "super", "self"].contains(&first.as_str()));
    let last = if path.last().is_some_and(|last| last == "self") { path.get(path.len().saturating_sub(2)) } else { path.last() };
    if let (true, Some(last)) = (is_own, last) {
        found.own.insert(renamed.unwrap_or(last).to_owned());
    }
    found.paths.insert(path.to_vec());
}

/// Modules from the root to the file: `driver/redis/mod.rs` → driver, redis.
fn module_path(file: &str) -> Vec<&str> {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/').collect()
}

/// The modules of the first floor that a file refers to, itself left out.
fn arrows(file: &str, source: &str) -> BTreeSet<String> {
    let modules = module_path(file);
    let is_known = |name: &str| MAY_IMPORT.iter().any(|(module, _)| *module == name);
    let mut arrows = BTreeSet::new();
    for path in references(source).paths {
        let path: Vec<&str> = path.iter().map(String::as_str).skip_while(|word| *word == "self").collect();
        let supers = path.iter().take_while(|word| **word == "super").count();
        let target = match path.first() {
            Some(&"crate") => path.get(1),
            Some(&"tintype") if modules[0] == "bin" => path.get(1),
            // A module inside the file adds a `super`.
            Some(&"super") if supers >= modules.len() => path.get(supers).filter(|name| is_known(name)),
            _ => None,
        };
        arrows.extend(target.filter(|name| **name != modules[0]).map(|name| (*name).to_owned()));
    }
    arrows
}

/// What a module may import, and for tests also what those may: a reader's tests need a store to read from.
fn allowed(module: &str, is_test: bool) -> Option<BTreeSet<&'static str>> {
    let direct = |module: &str| MAY_IMPORT.iter().find(|(name, _)| *name == module).map(|(_, may)| may.iter().copied());
    let mut allowed: BTreeSet<&str> = direct(module)?.collect();
    let depth = if is_test { MAY_IMPORT.len() } else { 0 };
    for _ in 0..depth {
        let below: Vec<&str> = allowed.iter().filter_map(|name| direct(name)).flatten().collect();
        allowed.extend(below);
    }
    Some(allowed)
}

fn arrow_faults(file: &str, source: &str, is_test: bool) -> Vec<String> {
    let module = module_path(file)[0];
    let at = source.lines().take(production_lines(source)).map(|line| line.len() + 1).sum::<usize>().min(source.len());
    let mut faults = Vec::new();
    for (part, is_test) in [(&source[..at], is_test), (&source[at..], true)] {
        let Some(allowed) = allowed(module, is_test) else {
            return vec![format!("src/{file}: the module {module} is not in the table of tests/tidy.rs")];
        };
        let is_excepted = |target: &str| EXCEPTIONS.iter().any(|(from, to, _)| *from == file && *to == target);
        faults.extend(
            arrows(file, part)
                .into_iter()
                .filter(|target| !allowed.contains(target.as_str()) && !is_excepted(target))
                .map(|target| format!("src/{file}: {module} → {target} is not allowed; {module} may import {allowed:?}")),
        );
    }
    faults
}

fn third_party_faults(file: &str, source: &str) -> Vec<String> {
    let found = references(source);
    let stands = |name: &str| found.paths.iter().any(|path| path[0] == name) && !found.own.contains(name);
    THIRD_PARTY
        .iter()
        .filter(|(name, places)| !places.iter().any(|place| file.starts_with(place)) && stands(name))
        .map(|(name, places)| format!("src/{file}: the package {name} stays in {places:?}"))
        .collect()
}

/// Lines before the file's own test module.
fn production_lines(source: &str) -> usize {
    let lines: Vec<&str> = source.lines().collect();
    let is_tests = |pair: &[&str]| pair[0].trim() == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{');
    lines.windows(2).position(is_tests).unwrap_or(lines.len())
}

/// Names of the files that exist for tests alone: declared by `#[cfg(test)] mod name;`, perhaps with a `#[path]`.
fn test_modules(source: &str) -> Vec<String> {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let mut found = Vec::new();
    for (at, _) in lines.iter().enumerate().filter(|(_, line)| **line == "#[cfg(test)]") {
        let path = lines.get(at + 1).and_then(|line| line.strip_prefix("#[path = \"")?.strip_suffix(".rs\"]"));
        let name = lines.get(at + 1).and_then(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
        found.extend(path.map(|path| format!("../{path}")).or(name.map(str::to_owned)));
    }
    found
}

/// The files of [`test_modules`], by their paths below `src`.
fn test_files(sources: &BTreeMap<String, String>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (file, source) in sources {
        let beside = &file[..file.rfind('/').map_or(0, |slash| slash + 1)];
        let is_folder = file.ends_with("mod.rs") || file == "lib.rs";
        let below = if is_folder { beside.to_owned() } else { format!("{}/", file.trim_end_matches(".rs")) };
        for name in test_modules(source) {
            found.insert(match name.strip_prefix("../") {
                Some(path) => format!("{beside}{path}.rs"),
                None => format!("{below}{name}.rs"),
            });
        }
    }
    found
}

fn text_faults(file: &str, source: &str, is_test: bool) -> Vec<String> {
    let mut faults = Vec::new();
    if !source.starts_with("//!") {
        faults.push(format!("src/{file}: begin it with `//!`: what it is for, in one sentence"));
    }
    let lines = production_lines(source);
    if lines > PRODUCTION_LINES_MAX && !is_test {
        faults.push(format!("src/{file}: {lines} production lines; split it before {PRODUCTION_LINES_MAX}"));
    }
    if file.split('/').count() > 3 {
        faults.push(format!("src/{file}: folders are two levels deep at most"));
    }
    let blanked = blanked(source);
    for pair in tokens(&blanked).windows(2) {
        if ["todo", "unimplemented"].contains(&pair[0]) && pair[1] == "!" {
            faults.push(format!("src/{file}: {}! is left in it", pair[0]));
        }
    }
    faults
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `src`, by its path there.
fn sources() -> BTreeMap<String, String> {
    let top = root().join("src");
    let (mut folders, mut found): (Vec<PathBuf>, _) = (vec![top.clone()], BTreeMap::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("src is there") {
            let place = entry.expect("src can be listed").path();
            if place.is_dir() {
                folders.push(place);
            } else if place.extension().is_some_and(|extension| extension == "rs") {
                let name = place.strip_prefix(&top).expect("below it").to_str().expect("a plain name").to_owned();
                found.insert(name, std::fs::read_to_string(&place).expect("a source can be read"));
            }
        }
    }
    assert!(found.len() > 40, "only {} sources were found", found.len());
    found
}

fn assert_none(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn modules_import_what_the_architecture_allows() {
    let sources = sources();
    let tests = test_files(&sources);
    assert_none(&sources.iter().flat_map(|(file, source)| arrow_faults(file, source, tests.contains(file))).collect::<Vec<_>>());
}

#[test]
fn third_party_names_stay_on_their_floor() {
    assert_none(&sources().iter().flat_map(|(file, source)| third_party_faults(file, source)).collect::<Vec<_>>());
}

#[test]
fn sources_begin_with_what_they_are_for_and_end_before_they_are_long() {
    let sources = sources();
    let tests = test_files(&sources);
    assert_none(&sources.iter().flat_map(|(file, source)| text_faults(file, source, tests.contains(file))).collect::<Vec<_>>());
}

#[test]
fn scripts_can_be_run() {
    let mut faults = Vec::new();
    for entry in std::fs::read_dir(root().join("scripts")).expect("scripts is there") {
        let place = entry.expect("scripts can be listed").path();
        // `lib.sh` is only ever sourced by the others.
        if !place.is_file() || place.file_name().is_some_and(|name| name == "lib.sh") {
            continue;
        }
        let mode = std::fs::metadata(&place).expect("stat").permissions().mode();
        let begins = std::fs::read(&place).expect("a script can be read").starts_with(b"#!");
        if mode & 0o111 != 0o111 || !begins {
            faults.push(format!("{}: make it executable (`chmod +x`) and begin it with `#!`", place.display()));
        }
    }
    assert_none(&faults);
}

#[test]
fn exceptions_are_argued_and_still_needed() {
    let sources = sources();
    for (file, target, reason) in EXCEPTIONS {
        assert!(reason.len() > 20, "src/{file} → {target}: say why");
        assert!(sources.get(file).is_some_and(|source| arrows(file, source).contains(target)), "src/{file} → {target}: is gone");
    }
}

#[test]
fn a_wrong_arrow_is_seen_however_it_is_written() {
    let samples = [
        ("cache/memory.rs", "use crate::repo::Extent;"),
        ("cache/memory.rs", "use crate::{base::Clock, repo::{self, Extent}};"),
        ("cache/memory.rs", "pub(crate) use\n    crate :: repo as storage;"),
        ("cache/memory.rs", "fn f() { let x = crate::repo::open::<u8>(); }"),
        ("cache/memory.rs", "fn f(x: &'static crate::repo::Extent) -> char { 'x' }"),
        ("cache/memory.rs", "use super::super::repo::Extent;"),
        ("cache/mod.rs", "use super::repo;"),
        ("cache/memory.rs", "mod tests { use super::super::super::repo::Extent; }"),
        ("cache/memory.rs", "const QUOTE: char = '\"'; use crate::repo::Extent; const S: &str = \"\";"),
        ("cache/memory.rs", "#[cfg(test)] mod tests { use crate::{model, repo}; }"),
        ("bin/tintype.rs", "fn main() { tintype::repo::open() }"),
    ];
    for (file, source) in samples {
        let faults = arrow_faults(file, source, false);
        assert_eq!(faults.len(), 1, "{source}: {faults:?}");
        assert!(faults[0].contains("→ repo is not allowed"), "{faults:?}");
    }
    assert!(arrow_faults("novel/mod.rs", "", false)[0].contains("not in the table"));
}

#[test]
fn what_is_no_arrow_is_let_pass() {
    let samples = [
        ("cache/memory.rs", "// use crate::repo::Extent;\n/* crate::repo /* nested */ crate::repo */"),
        ("cache/memory.rs", "const S: &str = \"crate::repo::X \\\" crate::repo\"; const R: &str = r#\"\"crate::repo\"#;"),
        ("cache/memory.rs", "use super::layered; use crate::cache::memory; use crate::model::{ids, names};"),
        ("driver/redis/link.rs", "use super::super::files; use super::repo;"),
        ("repo/reader.rs", "use crate::object::ObjectStore; fn f<'a>(x: &'a str) { x.repo::<u8>() }"),
        ("bin/tintype.rs", "fn main() -> std::process::ExitCode { tintype::app::control() }"),
    ];
    for (file, source) in samples {
        assert_eq!(arrow_faults(file, source, false), Vec::<String>::new(), "{source}");
    }
}

#[test]
fn a_package_off_its_floor_is_seen() {
    let samples = [
        ("fs/mod.rs", "use fuser::FileAttr;"),
        ("fs/mod.rs", "fn f() -> fuser::FileType { loop {} }"),
        ("driver/files/mod.rs", "use redis::{Client, aio};"),
        ("read/mod.rs", "use lru;"),
        ("repo/mod.rs", "#[derive(clap::Parser)] struct X;"),
        ("object/memory.rs", "use ::aws_sdk_s3 as s3;"),
    ];
    for (file, source) in samples {
        assert_eq!(third_party_faults(file, source).len(), 1, "{source}");
    }
    let fine = [
        ("fuse/adapter.rs", "use fuser::FileAttr;"),
        ("driver/redis/link.rs", "use redis::Client;"),
        ("driver/mod.rs", "pub mod redis; pub use redis::RedisDriver;"),
        ("app/wiring.rs", "use crate::driver::{files, redis}; fn f() { redis::RedisDriver::new() }"),
        ("object/s3/client.rs", "use aws_sdk_s3::Client;"),
        ("app/config.rs", "fn f() { crate::driver::redis::RedisDriver::new() } // fuser::X"),
    ];
    for (file, source) in fine {
        assert_eq!(third_party_faults(file, source), Vec::<String>::new(), "{source}");
    }
}

#[test]
fn long_unfinished_and_unexplained_files_are_seen() {
    let long = format!("//! x\n{}", "fn f() {}\n".repeat(500));
    assert_eq!(text_faults("a/b.rs", &long, false).len(), 1);
    assert_eq!(text_faults("a/tests.rs", &long, true).len(), 0);
    assert_eq!(text_faults("a/b.rs", &format!("//! x\n#[cfg(test)]\nmod tests {{\n{long}}}\n"), false).len(), 0);
    assert_eq!(text_faults("a/b.rs", "//! x\n#[cfg(test)]\nmod tests;\nfn f() { todo!() }\n", false).len(), 1);
    assert_eq!(text_faults("a/b.rs", "//! todo!()\nconst S: &str = \"todo!()\";\n", false).len(), 0);
    assert_eq!(text_faults("a/b.rs", "fn f() {}\n", false).len(), 1);
    assert_eq!(text_faults("a/b/c/d.rs", "//! x\n", false).len(), 1);
}

#[test]
fn tests_may_reach_what_their_floor_stands_on_and_no_further() {
    let object = "use crate::object::memory::MemoryStore;";
    assert_eq!(arrow_faults("read/file.rs", object, false).len(), 1);
    assert_eq!(arrow_faults("read/tests.rs", object, true), Vec::<String>::new());
    let inline = format!("//! x\n#[cfg(test)]\nmod tests {{\n    {object}\n}}\n");
    assert_eq!(arrow_faults("read/file.rs", &inline, false), Vec::<String>::new());
    assert_eq!(arrow_faults("read/tests.rs", "use crate::driver::StoreDriver;", true).len(), 1);
    let sources = BTreeMap::from([
        ("a/mod.rs".to_owned(), "#[cfg(test)]\nmod tests;\nmod other;\n".to_owned()),
        ("a/b.rs".to_owned(), "#[cfg(test)]\nmod c;\n#[cfg(test)]\n#[path = \"b_tests.rs\"]\nmod tests;\n".to_owned()),
    ]);
    assert_eq!(test_files(&sources).into_iter().collect::<Vec<_>>(), ["a/b/c.rs", "a/b_tests.rs", "a/tests.rs"]);
}
