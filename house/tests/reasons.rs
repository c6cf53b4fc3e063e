//! Every word a person may read in an answer stands in the documents.

use house::read;

/// The variants of the enum or words macro that begins with `head` in `source`.
fn words(source: &str, head: &str) -> Vec<String> {
    let body = source.split(head).nth(1).and_then(|rest| rest.split("\n);").next()).unwrap_or_default();
    let lines = body.lines().map(str::trim).filter(|line| !line.starts_with("//"));
    lines.filter_map(|line| line.strip_suffix(',')).map(str::to_owned).collect()
}

#[test]
fn every_reason_of_a_routing_decision_is_explained() {
    let documents = read("docs/routing.md").unwrap();
    let reasons = words(&read("routing/src/decision.rs").unwrap(), "\nreasons!(\n");
    assert!(reasons.len() > 10, "the reasons were not found: {reasons:?}");
    for reason in reasons {
        assert!(documents.contains(&format!("`{reason}`")), "docs/routing.md does not explain `{reason}`");
    }
}
