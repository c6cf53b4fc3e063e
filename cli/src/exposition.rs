//! Several parts' metrics as one exposition: each family once, each series with the part it comes from.
//!
//! OpenMetrics allows a family to appear once only, and the parts share some: `tombolo_refusals` is in all of them.

use std::collections::BTreeMap;

/// Puts expositions in the OpenMetrics text format together. Each is given with the name of its part, which becomes
/// the label `part` of its series.
pub fn merge<'a>(parts: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut families: BTreeMap<&str, Family<'_>> = BTreeMap::new();
    for (part, text) in parts {
        let mut current = "";
        let mut described = BTreeMap::<&str, Vec<&str>>::new();
        for line in text.lines().filter(|line| !line.is_empty() && *line != "# EOF") {
            match line.strip_prefix("# ").and_then(|rest| rest.split(' ').nth(1)) {
                Some(name) => {
                    current = name;
                    described.entry(name).or_default().push(line);
                }
                None => families.entry(current).or_default().series.push(with_part(line, part)),
            }
        }
        for (name, lines) in described {
            let family = families.entry(name).or_default();
            if family.described.is_empty() {
                family.described = lines;
            }
        }
    }
    let mut text = String::new();
    for family in families.values() {
        for line in family.described.iter().copied().chain(family.series.iter().map(String::as_str)) {
            text.push_str(line);
            text.push('\n');
        }
    }
    text.push_str("# EOF\n");
    text
}

#[derive(Default)]
struct Family<'a> {
    /// Its HELP, TYPE and UNIT lines, as the first part that has it writes them.
    described: Vec<&'a str>,
    series: Vec<String>,
}

fn with_part(line: &str, part: &str) -> String {
    let end = line.find(['{', ' ']).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    match rest.strip_prefix('{') {
        Some(labels) if labels.starts_with('}') => format!("{name}{{part=\"{part}\"{labels}"),
        Some(labels) => format!("{name}{{part=\"{part}\",{labels}"),
        None => format!("{name}{{part=\"{part}\"}}{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_of_two_parts_appears_once_and_each_series_says_whose_it_is() {
        let gateway = "# HELP a_b Help.\n# TYPE a_b counter\na_b_total{peer=\"x\"} 1\n# EOF\n";
        let node = "# HELP a_b Other.\n# TYPE a_b counter\na_b_total{peer=\"x\"} 2\n# TYPE c gauge\nc 3\n# EOF\n";
        assert_eq!(
            merge([("gateway", gateway), ("node", node)]),
            "# HELP a_b Help.\n# TYPE a_b counter\n\
             a_b_total{part=\"gateway\",peer=\"x\"} 1\na_b_total{part=\"node\",peer=\"x\"} 2\n\
             # TYPE c gauge\nc{part=\"node\"} 3\n# EOF\n"
        );
    }
}
