//! Everything we build on may be used by everybody who uses us.

use house::metadata;

/// Licences a dependency may have; any one alternative of an `OR` is enough, every part of an `AND` is needed.
const ALLOWED: [&str; 16] = [
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MPL-2.0",
    "MPL-2.0+",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "Zlib",
    "CC0-1.0",
    "0BSD",
    "Unlicense",
    "BSL-1.0",
];

fn is_allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    let all_of = |text: &str| {
        text.split(" AND ")
            .all(|one| ALLOWED.contains(&one.trim().trim_start_matches('(').trim_end_matches(')').trim()))
    };
    // `(A OR B) AND C`: every bracket must offer something allowed.
    if expression.contains('(') {
        return expression
            .split(" AND ")
            .all(|group| group.trim().trim_start_matches('(').trim_end_matches(')').split(" OR ").any(all_of));
    }
    expression.split(" OR ").any(all_of)
}

#[test]
fn every_dependency_has_a_licence_we_accept() {
    let metadata = metadata().unwrap();
    let mut refused = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let licence = package["license"].as_str().unwrap_or("none");
        if !is_allowed(licence) {
            refused.push(format!("{name}: {licence}"));
        }
    }
    assert!(refused.is_empty(), "not accepted: {refused:?}");
}

#[test]
fn an_expression_is_read_as_spdx_means_it() {
    for good in ["MIT OR GPL-3.0", "MIT/Apache-2.0", "Apache-2.0 AND ISC", "(MIT OR GPL-2.0) AND Unicode-3.0"] {
        assert!(is_allowed(good), "{good}");
    }
    for bad in ["GPL-3.0", "MIT AND GPL-3.0", "none", "(GPL-2.0 OR AGPL-3.0) AND MIT"] {
        assert!(!is_allowed(bad), "{bad}");
    }
}
