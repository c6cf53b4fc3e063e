//! What is done to the parts' metrics before they are served: each says which version runs, and those of several parts
//! become one exposition, each family once, each series with the part it comes from.
//!
//! OpenMetrics allows a family to appear once only, and the parts share some: `tombolo_refusals` is in all of them.

use std::collections::BTreeMap;

/// Adds `tombolo_build_info` to a part's exposition. Its `local_cluster` is that of the part's other series.
pub fn with_build_info(text: &str) -> String {
    const LABEL: &str = "local_cluster=\"";
    let series = text.lines().filter(|line| !line.starts_with('#'));
    let cluster =
        series.filter_map(|line| line.split_once(LABEL)?.1.split_once('"')).map(|(cluster, _)| cluster).next();
    let mut text = text.trim_end().strip_suffix("# EOF").unwrap_or(text).to_owned();
    text.push_str("# HELP tombolo_build_info The version that runs.\n# TYPE tombolo_build_info gauge\n");
    let (cluster, version) = (cluster.unwrap_or_default(), env!("CARGO_PKG_VERSION"));
    text.push_str(&format!("tombolo_build_info{{{LABEL}{cluster}\",version=\"{version}\"}} 1\n# EOF\n"));
    text
}

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
    fn every_part_says_which_version_runs_and_in_which_cluster() {
        let text = with_build_info("# TYPE c gauge\nc{local_cluster=\"amber\"} 3\n# EOF\n");
        let series = format!(
            "tombolo_build_info{{local_cluster=\"amber\",version=\"{}\"}} 1\n# EOF\n",
            env!("CARGO_PKG_VERSION")
        );
        assert!(text.starts_with("# TYPE c gauge\nc{") && text.ends_with(&series), "{text}");
        assert_eq!(text.matches("# EOF").count(), 1, "{text}");
        assert!(with_build_info("# EOF\n").contains("{local_cluster=\"\",version="));
    }

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
