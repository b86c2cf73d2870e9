//! How long files are and what they are called.

use crate::repo::Source;

/// Lines of a file without its tests. Most should stay below 500.
const LINES_MAX: usize = 800;

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 9] =
    ["utils", "util", "helpers", "helper", "common", "misc", "manager", "managers", "stuff"];

/// Checks one file.
pub(super) fn check(source: &Source, findings: &mut Vec<String>) {
    let path = &source.path;
    if !source.is_test() {
        let lines = source.lines_without_tests().count();
        if lines > LINES_MAX {
            findings.push(format!(
                "{path} has {lines} lines without its tests; split it (limit {LINES_MAX})"
            ));
        }
    }
    let empty = path
        .trim_end_matches(".rs")
        .split('/')
        .find(|part| EMPTY_NAMES.contains(part) || part.ends_with("_manager"));
    if let Some(part) = empty {
        findings.push(format!("{path}: \"{part}\" says nothing; name it after what it holds"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: String) -> Vec<String> {
        let mut findings = Vec::new();
        check(&Source { path: path.into(), text }, &mut findings);
        findings
    }

    #[test]
    fn counts_lines_up_to_the_test_module() {
        let code = "let x = 1;\n".repeat(LINES_MAX);
        let tests = format!("#[cfg(test)]\nmod tests {{\n{code}}}\n");
        assert!(findings("a/src/b.rs", format!("{code}{tests}")).is_empty());
        assert_eq!(findings("a/src/b.rs", format!("{code}\n{tests}")).len(), 1);
        assert!(findings("a/src/b/tests.rs", format!("{code}{code}")).is_empty());
    }

    #[test]
    fn a_test_module_in_another_file_does_not_end_the_count() {
        let code = "let x = 1;\n".repeat(LINES_MAX);
        assert_eq!(findings("a/src/b.rs", format!("#[cfg(test)]\nmod tests;\n{code}")).len(), 1);
    }

    #[test]
    fn refuses_names_that_say_nothing() {
        assert_eq!(findings("a/src/utils/b.rs", String::new()).len(), 1);
        assert_eq!(findings("a/src/session_manager.rs", String::new()).len(), 1);
        assert!(findings("a/src/session.rs", String::new()).is_empty());
    }
}
