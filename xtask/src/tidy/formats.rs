//! A format's document and its codec change together.
//!
//! Each document in docs/formats carries lines `codec-hash: HASH PATH`, one per file that lays its
//! bytes out. HASH is the BLAKE3 of that file without its tests, so that whoever changes the codec
//! must look at the document; `cargo xtask tidy --bless` then writes the new hash.

use std::fs;

use anyhow::{Context, Result};

use crate::repo::{self, Source};

const FOLDER: &str = "docs/formats/";
const LINE: &str = "codec-hash:";

/// Checks every format document.
///
/// # Errors
/// If a file cannot be read.
pub(super) fn check(documents: &[Source], findings: &mut Vec<String>) -> Result<()> {
    for document in documents.iter().filter(|document| is_format(document)) {
        let mut lines = 0;
        for (number, line) in document.text.lines().enumerate() {
            let Some((written, path)) = parts(line) else { continue };
            lines += 1;
            let place = format!("{}:{}", document.path, number + 1);
            match hash(path)? {
                None => findings.push(format!("{place} names {path}, which is not there")),
                Some(hash) if hash != written => findings.push(format!(
                    "{place}: {path} changed; look at this document, then `cargo xtask tidy --bless`"
                )),
                Some(_) => {}
            }
        }
        if lines == 0 {
            findings.push(format!(
                "{} has no line `{LINE} HASH PATH` for the codec it describes",
                document.path
            ));
        }
    }
    Ok(())
}

/// Writes today's hashes into the documents.
///
/// # Errors
/// If a document cannot be read or written.
pub(super) fn bless() -> Result<()> {
    for document in repo::sources(&[".md"])?.iter().filter(|document| is_format(document)) {
        let mut text = String::with_capacity(document.text.len());
        for line in document.text.lines() {
            match parts(line) {
                Some((written, path)) => {
                    let hash = hash(path)?.with_context(|| {
                        format!("{} names {path}, which is not there", document.path)
                    })?;
                    text.push_str(&replaced(line, written, &hash));
                }
                None => text.push_str(line),
            }
            text.push('\n');
        }
        if text != document.text {
            println!("tidy: blessed {}", document.path);
            fs::write(repo::root().join(&document.path), text)
                .with_context(|| format!("write {}", document.path))?;
        }
    }
    Ok(())
}

fn is_format(document: &Source) -> bool {
    document.path.starts_with(FOLDER) && !document.path.ends_with("/README.md")
}

/// The hash, empty when none was written yet, and the path of a `codec-hash:` line.
fn parts(line: &str) -> Option<(&str, &str)> {
    let rest = line.trim().trim_matches(['`', '<', '>', '!', '-', ' ']).strip_prefix(LINE)?.trim();
    Some(
        rest.split_once(char::is_whitespace).map_or(("", rest), |(hash, path)| (hash, path.trim())),
    )
}

/// The line with another hash.
fn replaced(line: &str, written: &str, hash: &str) -> String {
    let (before, after) = line.split_once(LINE).expect("the line was parsed");
    let after = after.trim_start().strip_prefix(written).expect("the line was parsed").trim_start();
    format!("{before}{LINE} {hash} {after}")
}

/// BLAKE3 of a file of the checkout without its tests, or nothing if there is no such file.
fn hash(path: &str) -> Result<Option<String>> {
    let file = repo::root().join(path);
    if !file.is_file() {
        return Ok(None);
    }
    let text = fs::read_to_string(&file).with_context(|| format!("read {path}"))?;
    let source = Source { path: path.to_owned(), text };
    let mut hasher = blake3::Hasher::new();
    for (_, line) in source.lines_without_tests() {
        hasher.update(line.as_bytes());
        hasher.update(b"\n");
    }
    Ok(Some(hasher.finalize().to_hex()[..32].to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_line_with_and_without_a_hash_and_in_a_comment() {
        assert_eq!(parts("codec-hash: ab12 a/b.rs"), Some(("ab12", "a/b.rs")));
        assert_eq!(parts("codec-hash: a/b.rs"), Some(("", "a/b.rs")));
        assert_eq!(parts("<!-- codec-hash: ab a/b.rs -->"), Some(("ab", "a/b.rs")));
        assert_eq!(parts("the codec-hash: line"), None);
    }

    #[test]
    fn blessing_keeps_the_rest_of_the_line() {
        assert_eq!(
            replaced("<!-- codec-hash: ab a/b.rs -->", "ab", "cd"),
            "<!-- codec-hash: cd a/b.rs -->"
        );
        assert_eq!(replaced("codec-hash: a/b.rs", "", "cd"), "codec-hash: cd a/b.rs");
    }

    #[test]
    fn tells_a_changed_codec_from_an_unchanged_one() {
        let path = "xtask/src/tidy/formats.rs";
        let hash = hash(path).unwrap().expect("this file is there");
        let document = |hash: &str| Source {
            path: "docs/formats/x.md".into(),
            text: format!("codec-hash: {hash} {path}\n"),
        };
        let mut findings = Vec::new();
        check(&[document(&hash)], &mut findings).unwrap();
        assert!(findings.is_empty(), "{findings:?}");
        check(&[document("00")], &mut findings).unwrap();
        assert!(findings[0].contains("changed"), "{findings:?}");
    }
}
