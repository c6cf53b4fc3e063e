//! Manifests: the bytes of one file in, its documents and what is wrong with the others out. Nothing here touches a
//! file.
//!
//! A file is split at its `---` lines before it is parsed, so that a broken document costs only itself.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::backend::{KindName, ObjectKey};
use crate::kinds::{self, Known, Refusal};

/// The largest file that is read, in bytes. A service with its slices has a few KiB: thousands fit into one file.
pub const MAX_FILE_BYTES: usize = 4 * 1024 * 1024;
/// Most documents in one file. What is over is reported and not read.
pub const MAX_DOCUMENTS: usize = 10_000;
/// Most problems reported of one file: an operator mends the first ones first.
const MAX_PROBLEMS: usize = 100;
/// How deep values may nest. Kubernetes objects stay below 20.
const MAX_DEPTH: usize = 64;
/// Most values in one document, those repeated by aliases included.
const MAX_VALUES: usize = 250_000;
/// The longest reason given, in bytes: a hostile value must not become a log line of a megabyte.
const MAX_REASON_BYTES: usize = 400;

/// An object's place among all objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) kind: KindName,
    pub(crate) object: ObjectKey,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind.kind, self.object)
    }
}

impl Key {
    /// Where `object`, which is of `kind`, belongs.
    pub(crate) fn of(kind: KindName, object: &Value) -> Self {
        let text = |field: &str| object.pointer(field).and_then(Value::as_str);
        let namespace = if kind.namespaced {
            Some(text("/metadata/namespace").filter(|namespace| !namespace.is_empty()).unwrap_or("default"))
        } else {
            None
        };
        Self { kind, object: ObjectKey::new(namespace, text("/metadata/name").unwrap_or_default()) }
    }
}

/// What one file says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Manifest {
    pub(crate) documents: Vec<Document>,
    pub(crate) problems: Vec<Problem>,
    /// What each document's text came to, by a mark of the text.
    read: BTreeMap<u64, Arc<Read>>,
}

/// A good object and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Document {
    pub(crate) key: Key,
    pub(crate) line: u64,
    /// The same one for as long as its document's text stays the same.
    pub(crate) object: Arc<Value>,
}

/// What one document's text came to; lines count from its first.
#[derive(Debug, Default)]
struct Read {
    documents: Vec<Document>,
    problems: Vec<Problem>,
}

impl Read {
    fn problem(&mut self, line: u64, key: Option<Key>, reason: impl Into<String>) {
        self.problems.push(Problem { line: Some(line), key, reason: shortened(reason.into()) });
    }
}

/// A document that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// From 1; `None` when it is the whole file.
    pub(crate) line: Option<u64>,
    /// Which object it would have been, where the document still shows it.
    pub(crate) key: Option<Key>,
    pub(crate) reason: String,
}

impl Manifest {
    /// A file that cannot be read at all.
    pub(crate) fn unreadable(reason: String) -> Self {
        Self { problems: vec![Problem { line: None, key: None, reason }], ..Self::default() }
    }

    /// Whether something in the file cannot be told apart: any object that came from this file may be meant.
    pub(crate) fn is_opaque(&self) -> bool {
        self.problems.iter().any(|problem| problem.key.is_none())
    }

    /// Takes a document that begins on `line`.
    fn take(&mut self, line: u64, read: &Read) {
        let at = |inside: u64| line + inside - 1;
        self.documents
            .extend(read.documents.iter().map(|document| Document { line: at(document.line), ..document.clone() }));
        self.problems
            .extend(read.problems.iter().map(|problem| Problem { line: problem.line.map(at), ..problem.clone() }));
    }
}

/// What is wrong with a manifest's bytes: each refused document's line, from 1, and the reason; empty when all is well.
/// `json` says that the file's name ends so.
pub fn check(bytes: &[u8], json: bool) -> Vec<(Option<u64>, String)> {
    read(bytes, json, None).problems.into_iter().map(|problem| (problem.line, problem.reason)).collect()
}

/// Reads a file's bytes. `json` says that the file's name ends so.
///
/// Of a YAML file only those documents are parsed that `before`, what the file said before, did not have: one change
/// in a file of ten thousand objects costs one object.
pub(crate) fn read(bytes: &[u8], json: bool, before: Option<&Manifest>) -> Manifest {
    if bytes.len() > MAX_FILE_BYTES {
        return Manifest::unreadable(too_large(bytes.len() as u64));
    }
    let mut manifest = Manifest::default();
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            let text = text.strip_prefix('\u{feff}').unwrap_or(text);
            if json { read_json(text, &mut manifest) } else { read_yaml(text, &mut manifest, before) }
        }
        Err(error) => {
            let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() as u64;
            let reason = "is not UTF-8: save the file as UTF-8".into();
            manifest.problems.push(Problem { line: Some(line), key: None, reason });
        }
    }
    if manifest.problems.len() > MAX_PROBLEMS {
        let more = manifest.problems.len() - MAX_PROBLEMS;
        // The rest stays unnamed, so whatever came from this file before is kept.
        manifest.problems.truncate(MAX_PROBLEMS);
        manifest.problems.push(Problem {
            line: None,
            key: None,
            reason: format!("{more} more documents of this file are refused"),
        });
    }
    manifest
}

/// Why a file of `size` bytes is not read.
pub(crate) fn too_large(size: u64) -> String {
    format!("has {size} bytes, and at most {MAX_FILE_BYTES} are read from one file: split it")
}

fn read_json(text: &str, manifest: &mut Manifest) {
    let mut read = Read::default();
    let documents = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    for (index, document) in documents.enumerate() {
        match document {
            _ if index >= MAX_DOCUMENTS => {
                read.problem(1, None, too_many());
                break;
            }
            Ok(value) => read_object(value, 1, None, &mut read),
            Err(error) => read.problem(error.line().max(1) as u64, None, format!("is not JSON: {error}")),
        }
    }
    manifest.take(1, &read);
}

fn read_yaml(text: &str, manifest: &mut Manifest, before: Option<&Manifest>) {
    let documents = Chunks::new(text).filter(|chunk| !chunk.text.lines().all(says_nothing));
    for (index, chunk) in documents.enumerate() {
        if index >= MAX_DOCUMENTS {
            manifest.problems.push(Problem { line: Some(chunk.line), key: None, reason: too_many() });
            return;
        }
        let mark = mark(&chunk.text);
        let known = before.and_then(|before| before.read.get(&mark)).cloned();
        let read = known.unwrap_or_else(|| Arc::new(read_document(&chunk.text)));
        manifest.take(chunk.line, &read);
        manifest.read.insert(mark, read);
    }
}

/// Tells texts apart. A chance of one in 2^64 that two versions of a document look alike is none.
fn mark(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

fn read_document(text: &str) -> Read {
    let mut read = Read::default();
    match parse::<Value>(text) {
        Ok(Value::Null) => {}
        Ok(value) => {
            let line = 1 + text.lines().take_while(|line| says_nothing(line)).count() as u64;
            read_object(value, line, Some(text), &mut read);
        }
        Err((line, reason)) => read.problem(line, None, reason),
    }
    read
}

fn too_many() -> String {
    format!("at most {MAX_DOCUMENTS} documents are read from one file: split it")
}

/// Parses one YAML document within the limits above. The error says the line, from 1, and the reason.
pub(crate) fn parse<T: DeserializeOwned>(document: &str) -> Result<T, (u64, String)> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_VALUES,
            max_documents: 1,
            max_total_scalar_bytes: MAX_FILE_BYTES,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_VALUES,
            max_replay_stack_depth: 16,
            max_alias_expansions_per_anchor: 1024,
        },
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(document, options).map_err(|error| {
        let error = error.without_snippet();
        let line = error.location().map_or(1, |location| location.line().max(1));
        let mut reason = error.to_string();
        // The line is said once, and it is the file's, not the document's.
        for mark in [" at line ", "error: line "] {
            if let Some(at) = reason.rfind(mark)
                && reason[at + mark.len()..].chars().all(|c| c.is_ascii_digit() || ", column:".contains(c))
            {
                reason.truncate(at);
            }
        }
        (line, reason)
    })
}

/// Takes one parsed document: an object, or a `List` of them.
fn read_object(value: Value, line: u64, text: Option<&str>, read: &mut Read) {
    let said = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, kind) = (said("apiVersion"), said("kind"));
    if !value.is_object() {
        return read.problem(line, None, "is not an object: start it with apiVersion, kind and metadata");
    }
    if kind.is_empty() || version.is_empty() {
        return read.problem(line, None, "says no apiVersion and kind: every object says both");
    }
    if kind == "List" && version == "v1" {
        let Value::Object(mut fields) = value else { return };
        let items = match fields.remove("items") {
            Some(Value::Array(items)) => items,
            None | Some(Value::Null) => Vec::new(),
            Some(_) => return read.problem(line, None, "items: must be a list of objects"),
        };
        for item in items {
            if item.get("kind").and_then(Value::as_str) == Some("List") {
                read.problem(line, None, "a List inside a List is not read: put its items side by side");
            } else {
                read_object(item, line, None, read);
            }
        }
        return;
    }
    let (group, _) = version.split_once('/').unwrap_or(("", &version));
    let Some(known) = kinds::find(group, &kind) else {
        return read.problem(line, None, unknown_kind(&version, &kind));
    };
    if !known.versions.contains(&version.as_str()) {
        let expected = known.versions.join(" or ");
        return read.problem(
            line,
            Some(Key::of(known.name, &value)),
            format!("apiVersion '{version}' is not known for {kind}: write {expected}"),
        );
    }
    admit(known, value, line, text, read);
}

fn unknown_kind(version: &str, kind: &str) -> String {
    let elsewhere = kinds::all().iter().find(|known| known.name.kind == kind);
    match elsewhere {
        Some(known) => format!("{kind} belongs to apiVersion '{}', not '{version}'", known.versions[0]),
        None => {
            let kinds: Vec<_> = kinds::all().iter().map(|known| known.name.kind).collect();
            format!("the kind '{kind}' of '{version}' is not known here; known are {}", kinds.join(", "))
        }
    }
}

fn admit(known: &Known, mut value: Value, line: u64, text: Option<&str>, read: &mut Read) {
    let key = Key::of(known.name, &value);
    let named = (!key.object.name.is_empty()).then(|| key.clone());
    if let Some(fields) = value.as_object_mut() {
        // A status is for Tombolo to write. Of a Kubernetes object it may hold what nobody else here knows, such as
        // a Node's addresses.
        if known.strict {
            fields.remove("status");
        }
        // What an earlier cluster's bookkeeping left in an exported object means nothing here.
        if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
            for field in [
                "uid",
                "resourceVersion",
                "generation",
                "creationTimestamp",
                "deletionTimestamp",
                "deletionGracePeriodSeconds",
                "ownerReferences",
                "finalizers",
                "managedFields",
            ] {
                metadata.remove(field);
            }
        }
    }
    match known.admit(value) {
        Ok(object) => {
            read.documents.push(Document { key: Key::of(known.name, &object), line, object: Arc::new(object) })
        }
        Err(Refusal::Shape(detail)) => {
            // The typed parser knows the very line; without the text there is only the object's first.
            let found = text.and_then(|text| {
                let (at, reason) = known.locate(text)?;
                let named = unknown_field(&reason).and_then(|name| crate::field_line::find_name(text, name));
                Some((named.unwrap_or(at), reason))
            });
            let (line, mut reason) = found.unwrap_or((line, detail));
            if unknown_field(&reason).is_some() {
                reason.push_str(": check its spelling, or update Tombolo");
            }
            read.problem(line, named, reason);
        }
        Err(Refusal::Rules(violations)) => {
            let at = violations.first().and_then(|violation| crate::field_line::find(text?, &violation.path));
            read.problem(at.unwrap_or(line), named, Refusal::Rules(violations).to_string());
        }
    }
}

/// The name in serde's words for a field that a type does not have. serde knows no line for some of them.
fn unknown_field(reason: &str) -> Option<&str> {
    reason.strip_prefix("unknown field `")?.split('`').next()
}

fn shortened(mut reason: String) -> String {
    if reason.len() > MAX_REASON_BYTES {
        let cut = (0..=MAX_REASON_BYTES).rev().find(|at| reason.is_char_boundary(*at)).unwrap_or(0);
        reason.truncate(cut);
        reason.push('…');
    }
    // One problem is one line in a log and in a table.
    reason.replace(['\n', '\r'], " ")
}

/// Whether a line is blank, a comment or a directive.
fn says_nothing(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#') || line.starts_with('%')
}

/// One document's text and the line of the file it starts on, from 1.
struct Chunk<'a> {
    line: u64,
    text: Cow<'a, str>,
}

/// A file's text, cut at its document markers (YAML 1.2.2, section 9.1).
struct Chunks<'a> {
    rest: Option<&'a str>,
    /// The line `rest` starts on.
    line: u64,
    /// What the marker's own line says after the marker.
    carried: Option<&'a str>,
}

impl<'a> Chunks<'a> {
    fn new(text: &'a str) -> Self {
        Self { rest: Some(text), line: 1, carried: None }
    }
}

impl<'a> Iterator for Chunks<'a> {
    type Item = Chunk<'a>;

    fn next(&mut self) -> Option<Chunk<'a>> {
        let text = self.rest.take()?;
        let chunk_line = self.line;
        let carried = self.carried.take();
        let mut end = 0;
        for (lines, piece) in (0..).zip(text.split_inclusive('\n')) {
            if let Some(after) = marker(piece.trim_end_matches(['\n', '\r'])) {
                self.rest = Some(&text[end + piece.len()..]);
                self.carried = (!after.trim().is_empty()).then_some(after);
                self.line = chunk_line + lines + 1;
                break;
            }
            end += piece.len();
        }
        let body = &text[..end];
        Some(match carried {
            // The marker is given back as spaces, so that columns and lines stay the file's.
            Some(carried) => Chunk { line: chunk_line - 1, text: Cow::Owned(format!("   {carried}\n{body}")) },
            None => Chunk { line: chunk_line, text: Cow::Borrowed(body) },
        })
    }
}

/// What follows a document marker on its line; `None` when the line is no marker.
fn marker(line: &str) -> Option<&str> {
    let after = line.strip_prefix("---").or_else(|| line.strip_prefix("..."))?;
    (after.is_empty() || after.starts_with([' ', '\t'])).then_some(after)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(text: &str) -> Vec<(u64, String)> {
        Chunks::new(text).map(|chunk| (chunk.line, chunk.text.into_owned())).collect()
    }

    #[test]
    fn a_file_is_cut_at_its_markers_and_lines_still_count_from_its_top() {
        let text = "a: 1\n---\nb: 2\n--- {c: 3}\n...\n---\n";
        let expected = [(1, "a: 1\n"), (3, "b: 2\n"), (4, "    {c: 3}\n"), (6, ""), (7, "")];
        let expected: Vec<_> = expected.into_iter().map(|(line, text)| (line, text.to_owned())).collect();
        assert_eq!(lines(text), expected);
        assert_eq!(lines("text: |\n  ---\n  ----\n-----\n").len(), 1);
    }

    #[test]
    fn a_broken_document_costs_only_itself() {
        let good = "apiVersion: v1\nkind: Namespace\nmetadata: { name: shop }\n";
        let manifest = read(format!("{{\n---\n{good}---\nkind: [\n").as_bytes(), false, None);
        assert_eq!(manifest.documents.len(), 1);
        assert_eq!(manifest.documents[0].line, 3);
        assert_eq!(manifest.problems.len(), 2, "{:?}", manifest.problems);
        assert!(manifest.is_opaque());
    }

    #[test]
    fn a_key_that_is_said_twice_is_refused() {
        let manifest = read(b"apiVersion: v1\nkind: Namespace\nkind: Node\nmetadata: { name: a }\n", false, None);
        assert!(manifest.problems[0].reason.contains("kind"), "{:?}", manifest.problems);
        assert_eq!(manifest.problems[0].line, Some(3));
    }

    #[test]
    fn a_file_of_endless_problems_is_reported_in_bounded_words() {
        let manifest = read("---\n[]\n".repeat(20_000).as_bytes(), false, None);
        assert!(manifest.problems.len() <= MAX_PROBLEMS + 1);
        assert!(manifest.is_opaque());
        let long = format!("apiVersion: v1\nkind: {}\n", "x".repeat(1_000_000));
        assert!(read(long.as_bytes(), false, None).problems[0].reason.len() < 2 * MAX_REASON_BYTES);
    }

    #[test]
    fn a_document_that_stays_the_same_is_not_read_again() {
        let document = |name: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{ name: {name} }}\n---\n");
        let first = read((document("a") + &document("b")).as_bytes(), false, None);
        let second = read((document("c") + &document("b")).as_bytes(), false, Some(&first));
        assert!(Arc::ptr_eq(&first.documents[1].object, &second.documents[1].object));
        assert_eq!(second.documents[1].line, 5);
        assert_eq!(second.documents[0].key.object.name, "c");
    }

    #[test]
    fn a_file_that_is_not_utf_8_is_reported_with_its_line() {
        assert_eq!(read(b"a: 1\nb: \xff\n", false, None).problems[0].line, Some(2));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), json: bool) {
            read(&bytes, json, None);
        }

        #[test]
        fn no_manifest_like_text_makes_the_reader_panic(
            text in "(apiVersion: (v1|tombolo.dev/v1alpha1|multicluster.x-k8s.io/v1beta1|discovery.k8s.io/v1)\n|kind: (Service|List|Secret|EndpointSlice|RoutingPolicy|ServiceExport|Namespace)\n|metadata:|  name: a\n| \\{name: [a-z]{1,4}\\}\n|items:\n|- |  |spec:|stringData: |data: |[a-z]: |[&*][a-c] |---\n|\\[|\\]|\\{|\\}|\"|'|\n|: |!!|\\||>){0,40}",
            json: bool,
        ) {
            read(text.as_bytes(), json, None);
        }
    }
}
