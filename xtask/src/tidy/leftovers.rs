//! Work left undone without saying where it is tracked.

use crate::repo::{self, Source};

/// What may not stay in code. Written in two parts so that this file does not find itself.
const LEFT: [(&str, &str); 6] = [
    (concat!("todo", "!("), "finish it"),
    (concat!("unimplemented", "!("), "finish it"),
    (concat!("dbg", "!("), "remove it"),
    (concat!("#[", "ignore"), "assert today's behaviour instead, and name the issue"),
    (concat!("#![allow", "(dead_code)"), "remove what is dead"),
    (concat!("#[allow", "(dead_code)"), "remove what is dead"),
];

/// Marks that need an issue number right after them, as in `(#12)`.
const MARKS: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// Checks one file, its tests too.
pub(super) fn check(source: &Source, findings: &mut Vec<String>) {
    for (index, line) in source.text.lines().enumerate() {
        let place = format!("{}:{}", source.path, index + 1);
        let code = repo::code_of(line);
        for (left, advice) in LEFT {
            if code.contains(left) {
                findings.push(format!("{place} has `{left}`: {advice}"));
            }
        }
        for mark in MARKS {
            if has_mark_without_issue(line, mark) {
                findings.push(format!("{place} has {mark} without an issue: {mark}(#12)"));
            }
        }
    }
}

fn has_mark_without_issue(line: &str, mark: &str) -> bool {
    line.match_indices(mark).any(|(at, _)| {
        let is_inside_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let after = &line[at + mark.len()..];
        let is_word = !is_inside_word(line[..at].chars().next_back())
            && !is_inside_word(after.chars().next());
        let has_issue = after
            .strip_prefix("(#")
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        is_word && !has_issue
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wants_an_issue_after_a_mark() {
        let mark = MARKS[0];
        assert!(has_mark_without_issue(&format!("// {mark}: later"), mark));
        assert!(!has_mark_without_issue(&format!("// {mark}(#7): later"), mark));
        assert!(!has_mark_without_issue(&format!("let {mark}S = 1;"), mark));
    }

    #[test]
    fn finds_what_was_left_in_code_and_not_in_comments() {
        let text = format!("let x = {}1);\n// {}1)\n", LEFT[2].0, LEFT[2].0);
        let mut findings = Vec::new();
        check(&Source { path: "a.rs".into(), text }, &mut findings);
        assert_eq!(findings.len(), 1, "{findings:?}");
    }
}
