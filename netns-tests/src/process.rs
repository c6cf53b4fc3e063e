//! A child process in a host: started, waited for, killed, started again; its output kept.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::Host;

/// How many of the last lines are kept in memory for waiting and for evidence. The file keeps all.
const LINES_KEPT: usize = 10_000;
/// Longer lines are split: a program that writes no line ends must not fill the memory.
const LONGEST_LINE: u64 = 64 * 1024;
/// How often a port is tried while waiting for it: nothing announces that a socket listens.
const PORT_TRY: Duration = Duration::from_millis(10);

/// A running or ended child process. Clones mean the same process.
#[derive(Clone)]
pub struct Process(Arc<Inner>);

struct Inner {
    label: String,
    host: String,
    pid: Pid,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<String>,
    /// Lines ever written; `lines` holds the last of them.
    written: u64,
    ended: Option<ExitStatus>,
    output_closed: bool,
}

impl Process {
    pub(crate) fn start(host: &Host, label: &str, mut command: Command) -> Result<Self> {
        let what = format!("{}: starting {label} ({})", host.name(), command.get_program().to_string_lossy());
        let (output, input) = std::io::pipe().context("making a pipe")?;
        command.stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input);
        host.namespace().enter(&mut command)?;
        let child = command.spawn().with_context(|| what.clone())?;
        // The command owns the pipe's writing ends; while it lives the reader would never see the end.
        drop(command);
        let path = host.run_folder().join("log").join(format!("{label}.log"));
        let log = OpenOptions::new().create(true).append(true).open(&path).context(what)?;
        let process = Self(Arc::new(Inner {
            label: label.into(),
            host: host.name().into(),
            pid: Pid::from_raw(i32::try_from(child.id()).context("process number")?),
            state: Mutex::default(),
            changed: Condvar::new(),
        }));
        let reader = process.clone();
        std::thread::spawn(move || reader.read_output(output, log));
        let waiter = process.clone();
        std::thread::spawn(move || waiter.wait_for_end(child));
        Ok(process)
    }

    fn read_output(&self, output: impl Read, mut log: File) {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        loop {
            line.clear();
            let end = match output.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => break,
                Ok(_) => line.strip_suffix(b"\n").unwrap_or(&line),
            };
            let text = String::from_utf8_lossy(end).into_owned();
            // A full memory file system must not end the program under test; the lines below still have it.
            let _ = log.write_all(&line);
            let mut state = self.state();
            state.lines.push_back(text);
            state.written += 1;
            if state.lines.len() > LINES_KEPT {
                state.lines.pop_front();
            }
            self.0.changed.notify_all();
        }
        self.state().output_closed = true;
        self.0.changed.notify_all();
    }

    fn wait_for_end(&self, mut child: Child) {
        let ended = child.wait().unwrap_or_else(|_| ExitStatus::from_raw(0));
        self.state().ended = Some(ended);
        self.0.changed.notify_all();
    }

    pub fn label(&self) -> &str {
        &self.0.label
    }

    /// The process number inside the sandbox.
    pub fn number(&self) -> i32 {
        self.0.pid.as_raw()
    }

    pub fn is_running(&self) -> bool {
        self.state().ended.is_none()
    }

    /// Ends it at once, as a power cut would, and waits until it is gone.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait_for_exit(Duration::from_secs(10)).map(|_| ())
    }

    /// Asks it to end in good order and waits for that.
    pub fn terminate(&self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait_for_exit(limit)
    }

    /// Stops it where it stands, as a hung machine would.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets a frozen process go on.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Sends a signal. Errors when the process has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let state = self.state();
        // Held while signalling: after the wait its number could belong to another process.
        ensure!(state.ended.is_none(), "{self} has ended already, so {signal} cannot reach it");
        kill(self.0.pid, signal).with_context(|| format!("{self}: sending {signal}"))
    }

    /// Waits until the process has ended.
    pub fn wait_for_exit(&self, limit: Duration) -> Result<ExitStatus> {
        self.wait(limit, "end", |state| state.ended)
    }

    /// Waits until a line that contains `text` was written, and returns it. Lines already written count.
    pub fn wait_for_line(&self, text: &str, limit: Duration) -> Result<String> {
        self.wait_for_line_after(0, text, limit)
    }

    /// The same, for lines written after the mark that [`Self::lines_written`] gave.
    pub fn wait_for_line_after(&self, mark: u64, text: &str, limit: Duration) -> Result<String> {
        let aim = format!("write {text:?}");
        let found = self.wait(limit, &aim, |state| {
            let forgotten = state.written - state.lines.len() as u64;
            let skipped = usize::try_from(mark.saturating_sub(forgotten)).unwrap_or(usize::MAX);
            let line = state.lines.iter().skip(skipped).find(|line| line.contains(text)).cloned();
            let over = state.ended.is_some() && state.output_closed;
            line.map(Some).or_else(|| over.then_some(None))
        })?;
        found.with_context(|| format!("{self} ended before it would {aim}\n{}", self.last_lines(20)))
    }

    /// How many lines it has written so far.
    pub fn lines_written(&self) -> u64 {
        self.state().written
    }

    /// Waits until something accepts TCP connections at `address` of `host`.
    pub fn wait_for_port(&self, host: &Host, address: SocketAddr, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !host.accepts(address)? {
            ensure!(self.is_running(), "{self} ended before it listened on {address}\n{}", self.last_lines(20));
            ensure!(
                Instant::now() < deadline,
                "{self} does not listen on {address} after {limit:?}\n{}",
                self.last_lines(20)
            );
            std::thread::sleep(PORT_TRY);
        }
        Ok(())
    }

    /// The last `count` lines, each indented.
    pub fn last_lines(&self, count: usize) -> String {
        let state = self.state();
        let first = state.lines.len().saturating_sub(count);
        state.lines.iter().skip(first).map(|line| format!("    {line}\n")).collect()
    }

    /// Every line that is still in memory.
    pub fn lines(&self) -> Vec<String> {
        self.state().lines.iter().cloned().collect()
    }

    fn wait<T>(&self, limit: Duration, aim: &str, mut done: impl FnMut(&State) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + limit;
        let mut state = self.state();
        loop {
            if let Some(result) = done(&state) {
                return Ok(result);
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                drop(state);
                bail!("{self} did not {aim} within {limit:?}\n{}", self.last_lines(20));
            };
            state = self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Display for Process {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} in {}", self.0.label, self.0.host)
    }
}

impl std::fmt::Debug for Process {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Process({self}, {})", self.0.pid)
    }
}
