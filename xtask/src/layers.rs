//! `cargo xtask layers`: who may know whom (ARCHITECTURE.md, "code map").

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::repo::{self, Source};

/// What each crate of ours may depend on among our own, in any kind of dependency.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("farshore-proto", &[]),
    ("farshore-codec", &["farshore-proto"]),
    ("farshore-engine", &["farshore-proto"]),
    ("farshore-nbd", &["farshore-proto"]),
    ("farshore-disks", &[]),
    ("farshore-vault", &["farshore-proto", "farshore-codec", "farshore-engine"]),
    ("farshore-ingest", &["farshore-proto", "farshore-codec", "farshore-engine", "farshore-vault"]),
    (
        "farshore-export",
        &["farshore-proto", "farshore-codec", "farshore-vault", "farshore-disks", "farshore-nbd"],
    ),
    (
        "farshore-node",
        &[
            "farshore-proto",
            "farshore-codec",
            "farshore-engine",
            "farshore-nbd",
            "farshore-vault",
            "farshore-ingest",
            "farshore-export",
            "farshore-api",
            "farshore-client",
            "farshore-program",
        ],
    ),
    (
        "farshore-agent",
        &[
            "farshore-proto",
            "farshore-codec",
            "farshore-engine",
            "farshore-nbd",
            "farshore-api",
            "farshore-disks",
            "farshore-client",
            "farshore-program",
        ],
    ),
    ("farshore-api", &[]),
    ("farshore-program", &["farshore-api"]),
    ("farshore-trust", &["farshore-api"]),
    ("farshore-client", &["farshore-api", "farshore-trust"]),
    (
        "farshore-control",
        &["farshore-proto", "farshore-vault", "farshore-api", "farshore-program", "farshore-trust"],
    ),
    (
        "farshore-cli",
        &[
            "farshore-proto",
            "farshore-codec",
            "farshore-vault",
            "farshore-export",
            "farshore-nbd",
            "farshore-api",
            "farshore-program",
            "farshore-trust",
        ],
    ),
    (
        "farshore-bench",
        &[
            "farshore-proto",
            "farshore-codec",
            "farshore-engine",
            "farshore-vault",
            "farshore-ingest",
            "farshore-export",
            "farshore-e2e",
        ],
    ),
    (
        "farshore-loadgen",
        &[
            "farshore-proto",
            "farshore-engine",
            "farshore-api",
            "farshore-client",
            "farshore-program",
        ],
    ),
    ("farshore-e2e", &[]),
    (
        "farshore-conformance",
        &["farshore-e2e", "farshore-api", "farshore-client", "farshore-proto", "farshore-vault"],
    ),
    (
        "farshore-fuzz",
        &[
            "farshore-proto",
            "farshore-codec",
            "farshore-engine",
            "farshore-nbd",
            "farshore-vault",
            "farshore-ingest",
            "farshore-export",
            "farshore-agent",
            "farshore-api",
        ],
    ),
    (
        "farshore-sim",
        &[
            "farshore-proto",
            "farshore-codec",
            "farshore-engine",
            "farshore-vault",
            "farshore-ingest",
            "farshore-export",
            "farshore-agent",
            "farshore-api",
            "farshore-control",
        ],
    ),
    ("xtask", &[]),
];

/// Crates that decide or calculate and leave every effect to their callers.
const WITHOUT_IO: [&str; 3] = ["farshore-proto", "farshore-codec", "farshore-engine"];

/// Makes mistakes on purpose: only [`SIMULATOR`] and the tests of a crate may switch this feature on.
const SEEDED_BUGS: &str = "seeded-bugs";
const SIMULATOR: &str = "farshore-sim";

/// What a crate has for the tests of others: nobody may switch it on outside tests.
const TESTING: &str = "testing";

/// What such a crate may not depend on, except in its tests.
const IO_CRATES: [&str; 12] = [
    "tokio",
    "tokio-uring",
    "tokio-rustls",
    "glommio",
    "object_store",
    "rustls",
    "hyper",
    "reqwest",
    "warp",
    "sqlx",
    "rustix",
    "tempfile",
];

/// What such a crate's sources may not name, except in its tests.
const IO_PATHS: [&str; 7] = [
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "std::io::std",
    "std::time::Instant",
    "std::time::SystemTime",
];

/// A crate that only one kind of place may name.
#[derive(Debug)]
struct Confined {
    /// As it appears in a path.
    name: &'static str,
    /// Parts of a file's path that allow it.
    places: &'static [&'static str],
    /// How the rule reads to whoever broke it.
    rule: &'static str,
}

const CONFINED: [Confined; 5] = [
    Confined { name: "glommio", places: &["/rt/"], rule: "only rt/ folders name it" },
    Confined { name: "tokio_uring", places: &["/rt/"], rule: "only rt/ folders name it" },
    Confined {
        name: "warp",
        places: &["controlplane/server/src/http/"],
        rule: "only controlplane/server/src/http names it",
    },
    Confined {
        name: "sqlx",
        places: &["controlplane/server/src/db/"],
        rule: "only controlplane/server/src/db names it",
    },
    Confined {
        name: "object_store",
        places: &[
            "dataplane/vault/",
            "dataplane/export/tests/damage/",
            "tests/sim/src/store.rs",
            "bench/src/history/delayed.rs",
        ],
        rule: "only dataplane/vault names it, the simulated store, the delayed one and damaged ones",
    },
];

/// Checks every rule.
///
/// # Errors
/// If a rule is broken; the findings were printed.
pub(crate) fn run() -> Result<()> {
    let metadata = repo::output(repo::cargo().args([
        "metadata",
        "--no-deps",
        "--offline",
        "--format-version",
        "1",
    ]))?;
    let metadata: Value = serde_json::from_slice(&metadata).context("read cargo metadata")?;
    let crates = crates(&metadata)?;
    let mut findings = Vec::new();
    for package in &crates {
        dependencies(package, &mut findings);
    }
    let sources = repo::sources(&[".rs"])?;
    let mut lines = 0;
    for source in &sources {
        let owner = crates.iter().find(|package| source.path.starts_with(&package.folder));
        lines += names(source, owner, &mut findings);
    }
    let looked_at = format!("{} crates, {lines} lines", crates.len());
    repo::conclude("layers", &looked_at, &findings)
}

/// One crate of the workspace.
#[derive(Debug, Default)]
struct Package {
    name: String,
    /// Below the root, ending in `/`.
    folder: String,
    /// Every kind of dependency.
    knows: BTreeSet<String>,
    /// Without those of tests.
    links: BTreeSet<String>,
    /// Dependencies whose seeded bugs it compiles in, without those of tests.
    seeds: BTreeSet<String>,
    /// Dependencies of which it compiles in what is for tests, without those of its own tests.
    tries: BTreeSet<String>,
}

fn crates(metadata: &Value) -> Result<Vec<Package>> {
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    packages.iter().map(package).collect()
}

fn package(value: &Value) -> Result<Package> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let name = text(&value["name"]).context("a package without a name")?;
    let manifest = text(&value["manifest_path"]).context("a package without a manifest")?;
    let root = repo::root();
    let folder = manifest
        .strip_prefix(&*root.to_string_lossy())
        .and_then(|path| path.strip_suffix("Cargo.toml"))
        .with_context(|| format!("{manifest} lies outside the checkout"))?
        .trim_start_matches('/')
        .to_owned();
    let mut package = Package { name, folder, ..Package::default() };
    for dependency in value["dependencies"].as_array().into_iter().flatten() {
        let name = text(&dependency["name"]).context("a dependency without a name")?;
        if dependency["kind"] != "dev" {
            package.links.insert(name.clone());
        }
        let features = dependency["features"].as_array().into_iter().flatten();
        // What only tests depend on is in no program.
        for feature in features.filter(|_| dependency["kind"] != "dev") {
            if feature == SEEDED_BUGS {
                package.seeds.insert(name.clone());
            }
            if feature == TESTING {
                package.tries.insert(name.clone());
            }
        }
        package.knows.insert(name);
    }
    Ok(package)
}

fn dependencies(package: &Package, findings: &mut Vec<String>) {
    let table: BTreeMap<&str, &[&str]> = MAY_KNOW.iter().copied().collect();
    let Some(allowed) = table.get(package.name.as_str()) else {
        findings.push(format!(
            "{} is not in the table of xtask/src/layers.rs: say whom it may know",
            package.name
        ));
        return;
    };
    for known in package.knows.iter().filter(|name| name.starts_with("farshore-")) {
        if !allowed.contains(&known.as_str()) {
            findings.push(format!("{} may not know {known}", package.name));
        }
    }
    for seeded in package.seeds.iter().filter(|_| package.name != SIMULATOR) {
        let name = &package.name;
        findings.push(format!("{name} may not switch on {SEEDED_BUGS} of {seeded}"));
    }
    for tried in &package.tries {
        findings.push(format!("{} may switch on {TESTING} of {tried} in tests only", package.name));
    }
    if WITHOUT_IO.contains(&package.name.as_str()) {
        for linked in package.links.iter().filter(|name| IO_CRATES.contains(&name.as_str())) {
            findings.push(format!("{} does no I/O and may not link {linked}", package.name));
        }
    }
}

/// Checks the names in one file and returns its number of lines.
fn names(source: &Source, owner: Option<&Package>, findings: &mut Vec<String>) -> usize {
    let is_pure = owner.is_some_and(|package| WITHOUT_IO.contains(&package.name.as_str()));
    for (number, line) in source.lines_without_tests() {
        let code = repo::code_of(line);
        for confined in &CONFINED {
            let is_named = names_crate(code, confined.name);
            if is_named && !confined.places.iter().any(|place| source.path.contains(place)) {
                let Confined { name, rule, .. } = confined;
                findings.push(format!("{}:{number} names {name}: {rule}", source.path));
            }
        }
        let path = IO_PATHS.iter().find(|path| code.contains(*path));
        if let Some(path) = path.filter(|_| is_pure && !source.is_test()) {
            findings.push(format!("{}:{number} names {path} in a crate without I/O", source.path));
        }
    }
    source.text.lines().count()
}

/// Whether a line of code has a path that starts at the crate `name`.
fn names_crate(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].trim_end_matches("::").chars().next_back();
        let starts_here = !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '"');
        let after = &code[at + name.len()..];
        let is_used = code[..at].trim_end().ends_with("use") && after.starts_with([';', ' ']);
        starts_here && (after.starts_with("::") || is_used)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_a_crate_from_a_word_that_looks_like_it() {
        assert!(names_crate("use glommio::LocalExecutor;", "glommio"));
        assert!(names_crate("let pool = ::sqlx::Pool;", "sqlx"));
        assert!(names_crate("use warp;", "warp"));
        assert!(!names_crate("mod glommio;", "glommio"));
        assert!(!names_crate("use timewarp::Clock;", "warp"));
        assert!(!names_crate("let backend = \"glommio\";", "glommio"));
    }

    #[test]
    fn finds_a_dependency_against_the_table() {
        let package = Package {
            name: "farshore-engine".into(),
            knows: ["farshore-vault".into(), "tokio".into()].into(),
            links: ["tokio".into()].into(),
            seeds: ["farshore-proto".into()].into(),
            tries: ["farshore-vault".into()].into(),
            ..Package::default()
        };
        let mut findings = Vec::new();
        dependencies(&package, &mut findings);
        assert_eq!(
            findings,
            [
                "farshore-engine may not know farshore-vault",
                "farshore-engine may not switch on seeded-bugs of farshore-proto",
                "farshore-engine may switch on testing of farshore-vault in tests only",
                "farshore-engine does no I/O and may not link tokio"
            ]
        );
    }

    #[test]
    fn finds_a_runtime_outside_its_folder_and_io_in_a_pure_crate() {
        let engine = Package { name: "farshore-engine".into(), ..Package::default() };
        let text = "use std::fs::File;\nglommio::timer::sleep(d); // glommio::x\n";
        let source = Source { path: "dataplane/engine/src/lib.rs".into(), text: text.into() };
        let mut findings = Vec::new();
        names(&source, Some(&engine), &mut findings);
        assert_eq!(findings.len(), 2, "{findings:?}");

        let source = Source { path: "dataplane/node/src/rt/glommio.rs".into(), text: text.into() };
        let mut findings = Vec::new();
        names(&source, None, &mut findings);
        assert_eq!(findings, Vec::<String>::new());
    }
}
