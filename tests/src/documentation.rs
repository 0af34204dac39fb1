//! What the documentation promises is tried by a test on the cluster.

use std::{fs, path::Path};

/// Names of the checks, by their rows.
fn checks(documentation: &str) -> Vec<&str> {
    documentation
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
        .map(|(name, _)| name)
        .collect()
}

/// Whether a test expects the check together with words, or in a message: a name in passing does not count.
fn is_expected(tests: &str, name: &str) -> bool {
    let forms = [format!("(\"{name}\","), format!("[\"{name}\","), format!("contains(\"{name}\")")];
    forms.iter().any(|form| tests.contains(form))
}

#[test]
fn every_check_is_found_by_a_test_on_the_cluster() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let documentation = fs::read_to_string(root.join("../docs/preflight.md")).unwrap();
    let checks = checks(&documentation);
    assert!(checks.len() > 50, "{checks:?}");
    let tests: String = fs::read_dir(root.join("cluster"))
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    // However it is broken into lines.
    let tests: String = tests.split_whitespace().collect();
    let untried: Vec<&&str> = checks.iter().filter(|name| !is_expected(&tests, name)).collect();
    assert!(untried.is_empty(), "no test finds {untried:?}");
}
