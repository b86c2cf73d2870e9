//! Relative links between documents lead somewhere.

use std::path::Path;

use crate::repo::{self, Source};

/// Checks the links of one document.
pub(super) fn check(document: &Source, findings: &mut Vec<String>) {
    let folder = Path::new(&document.path).parent().unwrap_or(Path::new(""));
    let mut is_example = false;
    for (index, line) in document.text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            is_example = !is_example;
        }
        if is_example {
            continue;
        }
        for target in targets(line) {
            let file = target.split('#').next().unwrap_or_default();
            let is_here = file.is_empty() || repo::root().join(folder).join(file).exists();
            if !is_outside(target) && !is_here {
                let path = &document.path;
                findings
                    .push(format!("{path}:{} links to {target}, which is not there", index + 1));
            }
        }
    }
}

fn is_outside(target: &str) -> bool {
    target.contains("://") || target.starts_with("mailto:")
}

/// The targets of `[text](target)` in a line.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_link_that_leads_nowhere() {
        let text = "[a](../Cargo.toml) [b](gone.md#x) [c](https://example.org) [d](#here)\n\
                    ```\n[e](gone.md)\n```\n";
        let document = Source { path: "xtask/x.md".into(), text: text.into() };
        let mut findings = Vec::new();
        check(&document, &mut findings);
        assert_eq!(findings, ["xtask/x.md:1 links to gone.md#x, which is not there"]);
    }
}
