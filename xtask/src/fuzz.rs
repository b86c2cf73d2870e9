//! `cargo xtask fuzz`: the targets of `tests/fuzz` under libFuzzer, guided by coverage.
//!
//! A stable compiler does it: LLVM's coverage pass is switched on by flags of code generation. Only
//! crates of the workspace get them, through a wrapper around the compiler, which is this program
//! again ([`as_compiler`]); everything goes to `target/fuzz`, so that other builds do not notice.

mod stats;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::repo;
use stats::Stats;

/// Set while cargo builds for fuzzing.
const COMPILING: &str = "FARSHORE_FUZZ_COMPILING";
/// Tells the program which target it is.
const TARGET: &str = "FARSHORE_FUZZ_TARGET";

/// What makes LLVM count edges and pass on what is compared. Source: cargo-fuzz 0.13.
const INSTRUMENT: [&str; 7] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    // Counters of one crate in several units have been lost to the linker.
    "-Ccodegen-units=1",
    "--cfg=fuzzing",
];

/// Longest input that is tried, in bytes, where the corpus has no longer one.
const INPUT_BYTES: u64 = 4096;
/// One input that takes longer than this is a find, in seconds.
const INPUT_SECONDS_MAX: u32 = 10;
/// Memory of the fuzzer, its corpus included, in MiB.
const MEMORY_MIB_MAX: u32 = 2048;
/// What one run may add to a target's kept corpus.
const KEEP_BYTES_MAX: u64 = 16 << 10;
const KEEP_FILES_MAX: usize = 24;

/// Settings of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A target (a folder of tests/fuzz/corpus), or `all`.
    target: String,
    /// How long each target runs.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Runs this one input again instead.
    #[arg(long)]
    replay: Option<PathBuf>,
    /// Adds some of what reached new code to the kept corpus.
    #[arg(long)]
    keep: bool,
}

/// Does the compiler's work if cargo calls this program in its place.
pub(crate) fn as_compiler() -> Option<ExitCode> {
    std::env::var_os(COMPILING)?;
    let mut arguments = std::env::args_os().skip(1);
    let compiler = arguments.next()?;
    let arguments: Vec<OsString> = arguments.collect();
    let mut command = Command::new(compiler);
    command.args(&arguments);
    if is_instrumented(&arguments) {
        command.args(INSTRUMENT);
    }
    let code = command.status().ok().and_then(|status| status.code());
    Some(ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// Whether a crate becomes part of the fuzzer: build scripts and macros run in the build.
fn is_instrumented(arguments: &[OsString]) -> bool {
    let follows = |flag: &str, value: &str| {
        arguments.windows(2).any(|pair| pair[0] == flag && pair[1] == value)
    };
    let is_built = arguments.iter().any(|argument| argument == "--crate-name");
    let is_tool = follows("--crate-type", "proc-macro")
        || follows("--crate-name", "build_script_build")
        || follows("--crate-name", "___");
    is_built && !is_tool
}

/// Builds the fuzzer and runs it.
///
/// # Errors
/// If it cannot be built, there is no such target, or a target finds something.
pub(crate) fn run(options: &Options) -> Result<()> {
    let targets = targets(&options.target)?;
    let program = build()?;
    if let Some(input) = &options.replay {
        ensure!(targets.len() == 1, "one input is for one target");
        let input = fs::canonicalize(input).with_context(|| format!("{}", input.display()))?;
        repo::check(Command::new(program).env(TARGET, &targets[0]).arg(input))?;
        println!("fuzz: nothing to say");
        return Ok(());
    }
    let mut findings = Vec::new();
    for target in &targets {
        findings.extend(Run::new(&program, target)?.go(options)?);
    }
    let looked_at = format!("{} targets", targets.len());
    repo::conclude("fuzz", &looked_at, &findings)
}

fn kept() -> PathBuf {
    repo::root().join("tests/fuzz/corpus")
}

/// The targets meant, in order of their names.
fn targets(meant: &str) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(kept()).context("list tests/fuzz/corpus")? {
        all.push(entry?.file_name().to_string_lossy().into_owned());
    }
    all.sort();
    if meant == "all" {
        return Ok(all);
    }
    if !all.iter().any(|target| target == meant) {
        bail!("there is no target {meant}; these there are: {}", all.join(" "));
    }
    Ok(vec![meant.to_owned()])
}

fn home() -> PathBuf {
    repo::target().join("fuzz")
}

fn build() -> Result<PathBuf> {
    let wrapper = std::env::current_exe().context("find this program")?;
    println!("fuzz: building into {}", home().display());
    repo::check(
        repo::cargo()
            .args(["build", "--quiet", "-p", "farshore-fuzz", "--bin", "fuzz"])
            .args(["--features", "libfuzzer"])
            .env("CARGO_TARGET_DIR", home())
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "2")
            .env("RUSTC_WORKSPACE_WRAPPER", wrapper)
            .env(COMPILING, "1"),
    )?;
    Ok(home().join("debug/fuzz"))
}

/// One target being run.
struct Run<'a> {
    program: &'a Path,
    target: &'a str,
    /// What is in the repository.
    kept: PathBuf,
    /// What was found in this and earlier runs on this machine.
    work: PathBuf,
    finds: PathBuf,
}

impl<'a> Run<'a> {
    fn new(program: &'a Path, target: &'a str) -> Result<Self> {
        let run = Self {
            program,
            target,
            kept: kept().join(target),
            work: home().join("work").join(target),
            finds: home().join("finds").join(target),
        };
        for folder in [&run.work, &run.finds, &home().join("logs")] {
            fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        }
        Ok(run)
    }

    /// Runs the target; returns what it found, in words.
    fn go(&self, options: &Options) -> Result<Vec<String>> {
        let before = names(&self.finds)?;
        let log = home().join("logs").join(format!("{}.log", self.target));
        let mut command = self.command()?;
        command
            .arg(format!("-max_total_time={}", options.seconds))
            .arg("-print_final_stats=1")
            .args([&self.work, &self.kept]);
        let status = self.logged(command, &log)?;
        let stats = Stats::of(&fs::read_to_string(&log).context("read the log")?);
        println!("fuzz: {}: {stats}", self.target);
        let finds: Vec<_> = names(&self.finds)?.difference(&before).cloned().collect();
        let mut findings = Vec::new();
        for name in &finds {
            let place = self.kept.join(name);
            fs::copy(self.finds.join(name), &place).context("keep a find")?;
            findings.push(format!("{}: {} is a find", self.target, place.display()));
        }
        if finds.is_empty() && !status {
            findings.push(format!("{}: it ended badly; see {}", self.target, log.display()));
        }
        if options.keep && findings.is_empty() {
            self.keep()?;
        }
        Ok(findings)
    }

    fn command(&self) -> Result<Command> {
        let mut longest = INPUT_BYTES;
        for entry in fs::read_dir(&self.kept)? {
            longest = longest.max(entry?.metadata()?.len());
        }
        let mut command = Command::new(self.program);
        command
            .env(TARGET, self.target)
            .arg(format!("-artifact_prefix={}/", self.finds.display()))
            .arg(format!("-max_len={longest}"))
            .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"));
        Ok(command)
    }

    /// Runs a command with what it says in a file; whether it ended well.
    fn logged(&self, mut command: Command, log: &Path) -> Result<bool> {
        let said = File::create(log).with_context(|| format!("make {}", log.display()))?;
        let status = command.stdout(Stdio::null()).stderr(said).status();
        Ok(status.with_context(|| format!("start {}", self.program.display()))?.success())
    }

    /// Adds inputs that reach what the kept corpus does not: long ones, which reach deepest, and some of
    /// every length.
    fn keep(&self) -> Result<()> {
        let merged = home().join("merged").join(self.target);
        if merged.exists() {
            fs::remove_dir_all(&merged).context("empty the folder of the last merge")?;
        }
        fs::create_dir_all(&merged).context("make a folder to merge in")?;
        let kept = names(&self.kept)?;
        for name in &kept {
            fs::copy(self.kept.join(name), merged.join(name)).context("copy the corpus")?;
        }
        let mut command = self.command()?;
        command.arg("-merge=1").args([&merged, &self.work]);
        let log = home().join("logs").join(format!("{}.merge.log", self.target));
        ensure!(self.logged(command, &log)?, "the merge failed; see {}", log.display());
        let mut fresh = Vec::new();
        for name in names(&merged)?.difference(&kept) {
            let path = merged.join(name);
            fresh.push((fs::metadata(&path)?.len(), path, name.clone()));
        }
        fresh.sort();
        let (mut files, mut bytes) = (0, 0);
        let step = fresh.len().div_ceil(KEEP_FILES_MAX).max(1);
        for (length, path, name) in fresh.into_iter().rev().step_by(step) {
            if bytes + length > KEEP_BYTES_MAX {
                continue;
            }
            // The whole of libFuzzer's name is longer than needed to be unique here.
            fs::copy(&path, self.kept.join(&name[..name.len().min(12)]))
                .context("keep an input")?;
            (files, bytes) = (files + 1, bytes + length);
        }
        println!("fuzz: {}: kept {files} more inputs, {bytes} bytes", self.target);
        Ok(())
    }
}

fn names(folder: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        names.insert(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn instruments_what_becomes_part_of_the_fuzzer() {
        assert!(is_instrumented(&words("--crate-name farshore_proto --crate-type lib a.rs")));
        assert!(is_instrumented(&words("--crate-name fuzz --crate-type bin a.rs")));
        assert!(!is_instrumented(&words("--crate-name build_script_build --crate-type bin a.rs")));
        assert!(!is_instrumented(&words("--crate-name derive --crate-type proc-macro a.rs")));
        assert!(!is_instrumented(&words("- --crate-name ___ --print=file-names")));
        assert!(!is_instrumented(&words("-vV")));
    }

    #[test]
    fn every_target_has_a_folder() {
        assert!(targets("all").unwrap().len() > 30);
        assert_eq!(targets("frame").unwrap(), ["frame"]);
        assert!(targets("nothing").unwrap_err().to_string().contains(" frame "));
    }
}
