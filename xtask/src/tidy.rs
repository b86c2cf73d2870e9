//! `cargo xtask tidy`: the house rules that no compiler knows.

mod formats;
mod leftovers;
mod links;
mod shape;

use anyhow::Result;

use crate::repo;

/// Checks everything; with `is_blessing`, first rewrites the codec hashes in docs/formats.
///
/// # Errors
/// If a rule is broken; the findings were printed.
pub(crate) fn run(is_blessing: bool) -> Result<()> {
    if is_blessing {
        formats::bless()?;
    }
    let sources = repo::sources(&[".rs"])?;
    let documents = repo::sources(&[".md"])?;
    let mut findings = Vec::new();
    for source in &sources {
        shape::check(source, &mut findings);
        leftovers::check(source, &mut findings);
    }
    for document in &documents {
        links::check(document, &mut findings);
    }
    formats::check(&documents, &mut findings)?;
    let looked_at = format!("{} sources, {} documents", sources.len(), documents.len());
    repo::conclude("tidy", &looked_at, &findings)
}
