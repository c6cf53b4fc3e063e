//! On which line of a YAML document a field stands, so that a broken rule is reported where it is broken.

/// The line, from 1, of the field at `path` (`spec.tiers[1].clusters`), or of the deepest part of it that is there.
///
/// Reads block style by indentation, as people write it; a part written in flow style is found by its first line.
pub(crate) fn find(document: &str, path: &str) -> Option<u64> {
    let lines: Vec<(u64, &str)> = (1..)
        .zip(document.lines())
        .filter(|(_, line)| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
        .collect();
    let mut within = lines.as_slice();
    let mut found = None;
    for step in steps(path) {
        let Some((line, inside)) = (match step {
            Step::Field(name) => field(within, name),
            Step::Item(index) => item(within, index),
        }) else {
            break;
        };
        found = Some(line);
        within = inside;
    }
    found
}

/// The line, from 1, of the first field called `name`, wherever it stands.
pub(crate) fn find_name(document: &str, name: &str) -> Option<u64> {
    let stands = |line: &str| depth(line).1.split_once(':').is_some_and(|(key, _)| bare(key) == name);
    (1..).zip(document.lines()).find(|(_, line)| stands(line)).map(|(number, _)| number)
}

/// A key without its quotes.
fn bare(key: &str) -> &str {
    key.trim_end().trim_matches(['"', '\''])
}

enum Step<'a> {
    Field(&'a str),
    Item(usize),
}

fn steps(path: &str) -> impl Iterator<Item = Step<'_>> {
    path.split(['.', '['])
        .filter(|part| !part.is_empty())
        .map(|part| part.strip_suffix(']').unwrap_or(part).parse().map_or(Step::Field(part), Step::Item))
}

type Lines<'a> = [(u64, &'a str)];

/// A line's depth and text. The dash of a list's item counts as depth, for the item's fields stand below its text.
fn depth(line: &str) -> (usize, &str) {
    let mut text = line.trim_start_matches(' ');
    while let Some(after) = text.strip_prefix("- ") {
        text = after.trim_start_matches(' ');
    }
    (line.len() - text.len(), text)
}

/// The line of field `name` among the outermost fields of `within`, and the lines of its value.
fn field<'l, 't>(within: &'l Lines<'t>, name: &str) -> Option<(u64, &'l Lines<'t>)> {
    let outermost = depth(within.first()?.1).0;
    let start = within.iter().position(|(_, line)| {
        let (at, text) = depth(line);
        at == outermost && text.split_once(':').is_some_and(|(key, _)| bare(key) == name)
    })?;
    let rest = &within[start + 1..];
    let is_item = |line: &str| line.trim_start().starts_with("- ") || line.trim() == "-";
    // A list may stand at its field's own depth, its dashes telling it apart.
    let end = rest
        .iter()
        .position(|(_, line)| {
            let indent = line.len() - line.trim_start_matches(' ').len();
            indent < outermost || (indent == outermost && !is_item(line))
        })
        .unwrap_or(rest.len());
    Some((within[start].0, &rest[..end]))
}

/// The line of item `index` of the list that `within` is, and the lines of that item.
fn item<'l, 't>(within: &'l Lines<'t>, index: usize) -> Option<(u64, &'l Lines<'t>)> {
    let indent = |line: &str| line.len() - line.trim_start_matches(' ').len();
    let outermost = indent(within.first()?.1);
    let mut starts = within
        .iter()
        .enumerate()
        .filter(|(_, (_, line))| indent(line) == outermost && line.trim_start().starts_with('-'))
        .map(|(at, _)| at);
    let start = starts.nth(index)?;
    let end = starts.next().unwrap_or(within.len());
    Some((within[start].0, &within[start..end]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: &str = "\
apiVersion: tombolo.dev/v1alpha1
kind: RoutingPolicy
metadata:
  name: web
spec:
  # who answers
  tiers:
  - clusters:
      - cluster: amber
        weight: 3
  - clusters:
      - cluster: birch
        weight: 2000
  targetRefs: [{name: web}]
";

    #[test]
    fn a_field_is_found_by_its_path() {
        assert_eq!(find(POLICY, "metadata.name"), Some(4));
        assert_eq!(find(POLICY, "spec.tiers[0].clusters[0].weight"), Some(10));
        assert_eq!(find(POLICY, "spec.tiers[1].clusters[0].weight"), Some(13));
    }

    #[test]
    fn a_field_that_is_missing_is_found_by_what_should_hold_it() {
        assert_eq!(find(POLICY, "spec.tiers[1].spillBelow"), Some(11));
        assert_eq!(find(POLICY, "spec.targetRefs[0].name"), Some(14));
        assert_eq!(find(POLICY, "status"), None);
    }

    proptest! {
        #[test]
        fn no_text_and_no_path_make_the_finder_panic(text in "[ a-c:\\-\n#\\[\\]]{0,80}", path in "[a-c.\\[\\]0-9]{0,12}") {
            let _ = find(&text, &path);
        }
    }
}
