//! A command typed at a pseudo terminal: it asks there, and is answered.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::host::Host;

/// How often it is looked whether the command has printed more, or ended.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A command at a terminal of its own. Dropping it kills the command.
pub struct Terminal {
    keyboard: File,
    screen: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    child: Child,
}

impl Terminal {
    /// Starts the command in a host.
    pub fn start(host: &Host, mut command: Command) -> Result<Self> {
        let (ours, theirs) = pair().context("opening a pseudo terminal")?;
        host.namespace().enter(&mut command)?;
        command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(theirs);
        let child = command.spawn().with_context(|| format!("{}: starting a command at a terminal", host.name()))?;
        // It owns the terminal's other end; while it lives the reader would never see the end.
        drop(command);
        let keyboard = File::from(ours);
        let (mut output, screen) = (keyboard.try_clone()?, Arc::new(Mutex::new(String::new())));
        let shown = screen.clone();
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // When the last program at it has ended, a terminal says that it is broken.
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                shown.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
            }
        });
        Ok(Self { keyboard, screen, reader: Some(reader), child })
    }

    /// Everything on the screen so far, with what was typed.
    pub fn screen(&self) -> String {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the command has printed `text`. Errors when it ends before.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !self.screen().contains(text) {
            let ended = self.child.try_wait()?;
            // What it printed last may be under way still.
            ensure!(ended.is_none() || self.screen().contains(text), "it ended without {text:?}:\n{}", self.screen());
            ensure!(Instant::now() < deadline, "no {text:?} within {limit:?}:\n{}", self.screen());
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Types a line.
    pub fn enter(&mut self, line: &str) -> Result<()> {
        self.keyboard.write_all(format!("{line}\n").as_bytes()).context("typing at a terminal")
    }

    /// Waits for the command's end; gives how it ended, and all that it printed.
    pub fn end(mut self, limit: Duration) -> Result<(ExitStatus, String)> {
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(Instant::now() < deadline, "it did not end within {limit:?}:\n{}", self.screen());
            std::thread::sleep(LOOK_EVERY);
        };
        if let Some(reader) = self.reader.take() {
            // It ends with the last program at the terminal.
            let _ = reader.join();
        }
        Ok((status, self.screen()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Both ends of a new pseudo terminal: ours, and that of programs.
#[expect(unsafe_code, reason = "the two ends come as numbers")]
fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let (mut ours, mut theirs) = (-1, -1);
    // SAFETY: both numbers are written to places of ours; name, settings and size may be null (openpty(3)).
    let done = unsafe { libc::openpty(&mut ours, &mut theirs, ptr::null_mut(), ptr::null(), ptr::null()) };
    Errno::result(done)?;
    // SAFETY: openpty has opened both for us, and nobody else owns them.
    let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
    for end in [&ours, &theirs] {
        // A program that is started meanwhile must not keep the terminal open.
        fcntl(end.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    Ok((ours, theirs))
}
