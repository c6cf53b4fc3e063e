//! `make fuzz`: builds every fuzz target of the checkout and runs each for a while, as many at once as there are cores.
//!
//! libFuzzer comes as source with `libfuzzer-sys`, so all it needs is a C++ compiler; the stable Rust compiler
//! instruments the code. Everything under test is safe Rust, so no sanitizer is needed to see a fault: it panics.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, bail, ensure};
use house::fuzz_targets::{FuzzTarget, all};
use house::root;

/// How long each target runs when `SECONDS_EACH` does not say.
const SECONDS_EACH: u64 = 30;

/// Coverage for libFuzzer; `fuzzing` is the name crates of the field know.
const RUSTFLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing";

/// A debug build, for its checks of arithmetic, and quick enough: with coverage, more optimisation costs more minutes
/// of compiling than it saves in running.
const OPT_LEVEL: &str = "1";

/// An input that takes longer than this is a fault: a peer could hold up a thread with it.
const TIMEOUT_SECONDS: u64 = 10;

/// Memory of one target; a decoder that needs more for one input is at fault.
const MEMORY_MEGABYTES: u64 = 1024;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("make fuzz: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let seconds = match std::env::var("SECONDS_EACH") {
        Ok(text) if !text.is_empty() => text.parse().context("SECONDS_EACH is a number of seconds")?,
        _ => SECONDS_EACH,
    };
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| OsString::from("c++"));
    let answers = Command::new(&compiler).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !answers.is_ok_and(|status| status.success()) {
        bail!("a C++ compiler is missing, which libFuzzer is built with: install g++ or clang, or name one in CXX");
    }
    let only: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |target: &FuzzTarget| only.is_empty() || only.contains(&target.name);
    let targets: VecDeque<FuzzTarget> = all()?.into_iter().filter(wanted).collect();
    ensure!(!targets.is_empty(), "there is no fuzz target of that name: see `ls */fuzz/fuzz_targets`");
    let folder = build_folder();
    let triple = host_triple()?;
    let mut workspaces: Vec<&str> = targets.iter().map(|target| target.workspace.as_str()).collect();
    workspaces.dedup();
    for workspace in workspaces {
        build(workspace, &folder, &triple)?;
    }

    let count = targets.len();
    let at_once = thread::available_parallelism().map_or(1, usize::from);
    println!("{count} targets, {at_once} at once, {seconds} s each; what they learn stays in {}", folder.display());
    let (waiting, failed) = (Mutex::new(targets), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(target) = next(&waiting) {
                    match fuzz(&target, &folder, &triple, seconds) {
                        Ok(summary) => println!("ok    {:<18} {summary}", target.name),
                        Err(error) => {
                            println!("FAULT {:<18} {error:#}", target.name);
                            failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(target.name);
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    ensure!(failed.is_empty(), "{} of {count} targets found a fault: {}", failed.len(), failed.join(", "));
    Ok(())
}

fn next(waiting: &Mutex<VecDeque<FuzzTarget>>) -> Option<FuzzTarget> {
    waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).pop_front()
}

/// Beside what `cargo build` makes, so that `cargo clean` takes it along.
fn build_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from).join("fuzz")
}

fn host_triple() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("rustc did not start")?;
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(line.context("rustc does not say its host")?.to_owned())
}

fn build(workspace: &str, folder: &Path, triple: &str) -> anyhow::Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    // With a target named, the flags do not reach build scripts and macros, which run in the compiler.
    let status = Command::new(cargo)
        .args(["build", "--locked", "--quiet", "--target", triple, "--manifest-path"])
        .arg(root().join(workspace).join("Cargo.toml"))
        .env("RUSTFLAGS", RUSTFLAGS)
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", OPT_LEVEL)
        .env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only")
        .env("CARGO_TARGET_DIR", folder)
        .current_dir(root())
        .status()
        .context("cargo did not start")?;
    ensure!(status.success(), "{workspace} does not build");
    Ok(())
}

/// Runs one target; what libFuzzer said at the end, or what went wrong and where the input lies.
fn fuzz(target: &FuzzTarget, folder: &Path, triple: &str, seconds: u64) -> anyhow::Result<String> {
    let corpus = folder.join("corpus").join(&target.name);
    let artifacts = folder.join("artifacts").join(&target.name);
    for needed in [&corpus, &artifacts] {
        fs::create_dir_all(needed).with_context(|| format!("cannot make {}", needed.display()))?;
    }
    let mut command = Command::new(folder.join(triple).join("debug").join(&target.name));
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={TIMEOUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MEGABYTES}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()));
    let beside = |kind: &str| root().join(&target.workspace).join(kind).join(&target.name);
    let words = beside("words");
    if words.is_file() {
        command.arg(format!("-dict={}", words.display()));
    }
    command.arg(&corpus);
    let seeds = beside("seeds");
    if seeds.is_dir() {
        command.arg(seeds);
    }
    let output = command.output().context("the target did not start")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        let last = said.lines().rev().find(|line| line.contains("cov:")).unwrap_or_default();
        return Ok(last.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    let mut end: Vec<&str> = said.lines().rev().take(40).collect();
    end.reverse();
    bail!("{}\nthe input lies in {}; run the target with it as argument", end.join("\n"), artifacts.display())
}
