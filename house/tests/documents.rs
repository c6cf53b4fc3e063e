//! What the documents say of the source is true.

use std::collections::BTreeSet;

use house::{files, read, root};

fn documents() -> Vec<String> {
    files().unwrap().into_iter().filter(|path| path.ends_with(".md")).collect()
}

/// Every text between single backticks outside code blocks.
fn quoted(markdown: &str) -> Vec<String> {
    let mut quoted = Vec::new();
    let mut in_block = false;
    for line in markdown.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if !in_block {
            quoted.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    quoted
}

#[test]
fn every_link_in_a_document_leads_to_a_file() {
    for document in documents() {
        let text = read(&document).unwrap();
        let folder = root().join(&document).parent().unwrap().to_path_buf();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or_default();
            if path.is_empty() || path.contains("://") {
                continue;
            }
            assert!(folder.join(path).exists(), "{document} links to {path}, which is not there");
        }
    }
}

#[test]
fn every_name_in_architecture_md_stands_in_the_source() {
    let names = quoted(&read("ARCHITECTURE.md").unwrap());
    let files = files().unwrap();
    let source: String = files
        .iter()
        .filter(|path| path.ends_with(".rs") || path.ends_with(".toml"))
        .map(|path| read(path).unwrap())
        .collect();
    let words: BTreeSet<&str> = source.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-')).collect();
    assert!(names.len() > 20, "ARCHITECTURE.md names hardly anything");
    for name in names {
        let is_file = name.contains('/') && root().join(name.trim_end_matches('/')).exists();
        let is_word = words.contains(name.as_str());
        let stands_verbatim = source.contains(&name);
        assert!(
            is_file || is_word || stands_verbatim,
            "ARCHITECTURE.md speaks of `{name}`, which is nowhere in the source"
        );
    }
}

#[test]
fn nothing_committed_speaks_of_one_machine() {
    // Spelled in pieces, or this file would find itself.
    let traces = [["/wor", "k/"], ["/roo", "t/"], ["/far", "m/"]].map(|pieces| pieces.concat());
    for path in files().unwrap() {
        let Ok(text) = read(&path) else { continue };
        for trace in &traces {
            for (number, line) in text.lines().enumerate() {
                let starts_a_path = line
                    .match_indices(trace.as_str())
                    .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "_.-*".contains(c)));
                assert!(!starts_a_path, "{path}:{}: an absolute path of one machine", number + 1);
            }
        }
    }
}
