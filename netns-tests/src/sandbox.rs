//! A private machine for one test: own user, network, mount, process, IPC and name namespaces.
//!
//! A process with several threads cannot leave its user namespace (unshare(2): EINVAL), and a test binary has
//! threads. So the test starts its own binary a second time and the namespaces are made between fork and exec:
//!
//! ```text
//! test ── guard ── init (process 1 of the sandbox) ── the second run
//!         outside  reaps orphans                      does the work
//! ```
//!
//! When any of them dies, for whatever reason, all that stand to its right die with it, and the kernel takes the
//! namespaces, links, rules and memory file systems away. There is no cleanup code to forget.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getegid, geteuid, getppid, mkdir, pipe2, write};

/// Set in the environment of the second run.
const INSIDE: &str = "TOMBOLO_WORLD_INSIDE";

/// Where the outside's /proc stays visible: its `self` tells a process the number it has outside, which is the number
/// that `nsenter` wants.
const OUTSIDE_PROC: &CStr = c"/run/outside-proc";

/// The exit status shells use for a process ended by a signal is 128 plus the signal's number.
const ENDED_BY_SIGNAL: i32 = 128;

/// Whether this process is the second run, inside the sandbox.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Makes `command` run in namespaces of its own, where it is root over nothing but itself.
///
/// Inside, /proc and /sys are fresh, /run is an empty memory file system, and the only link is a `lo` that is down.
/// The command dies with the thread that starts it.
///
/// Starting it fails with EPERM where the machine forbids user namespaces; the failing step is written to the
/// command's standard error. `doctor` says what to change.
#[expect(unsafe_code, reason = "namespaces must be made between fork and exec")]
pub fn sandboxed(command: &mut Command) {
    let identity = Identity::of_this_process();
    command.env(INSIDE, "1");
    // SAFETY: `enter` makes system calls only; it neither allocates nor takes a lock, so it may run between fork and
    // exec of a process with threads.
    unsafe { command.pre_exec(move || enter(&identity)) };
}

/// What must be formatted before the fork, because nothing may be allocated after it.
struct Identity {
    parent: Pid,
    user_map: String,
    group_map: String,
}

impl Identity {
    fn of_this_process() -> Self {
        Self { parent: Pid::this(), user_map: format!("0 {} 1", geteuid()), group_map: format!("0 {} 1", getegid()) }
    }
}

fn enter(identity: &Identity) -> io::Result<()> {
    let every_namespace = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    step("making user and network namespaces", unshare(every_namespace))?;
    step("writing setgroups", write_file(c"/proc/self/setgroups", b"deny"))?;
    step("writing uid_map", write_file(c"/proc/self/uid_map", identity.user_map.as_bytes()))?;
    step("writing gid_map", write_file(c"/proc/self/gid_map", identity.group_map.as_bytes()))?;
    // After the maps: a change of credentials clears it.
    step("tying life to the test's", nix::sys::prctl::set_pdeathsig(Signal::SIGKILL))?;
    if getppid() != identity.parent {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    step("making mounts private", mount(None::<&CStr>, c"/", None::<&CStr>, private(), None::<&CStr>))?;
    let (guard_is_gone, guard_lives) = step("making a pipe", pipe2(OFlag::O_CLOEXEC))?;
    match fork_here("starting init")? {
        ForkResult::Parent { child } => {
            drop(guard_is_gone);
            close_all_but(guard_lives.as_fd());
            end_like(child)
        }
        ForkResult::Child => {
            drop(guard_lives);
            become_init(guard_is_gone)
        }
    }
}

/// Process 1 of the sandbox: mounts what belongs to it, starts the second run, and reaps until that ends.
fn become_init(guard_is_gone: OwnedFd) -> io::Result<()> {
    step("tying init's life to the guard's", nix::sys::prctl::set_pdeathsig(Signal::SIGKILL))?;
    // The guard may have died before the line above; then nobody would ever send that signal.
    if hung_up(guard_is_gone.as_fd()) {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    let nothing = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    step("mounting /run", mount(Some(c"world"), c"/run", Some(c"tmpfs"), nothing, Some(c"mode=0755")))?;
    step("making a folder in /run", mkdir(OUTSIDE_PROC, Mode::from_bits_truncate(0o755)))?;
    let recursively = MsFlags::MS_BIND | MsFlags::MS_REC;
    step("keeping the outer /proc", mount(Some(c"/proc"), OUTSIDE_PROC, None::<&CStr>, recursively, None::<&CStr>))?;
    step("mounting /proc", mount(Some(c"proc"), c"/proc", Some(c"proc"), nothing, None::<&CStr>))?;
    step("mounting /sys", mount(Some(c"sysfs"), c"/sys", Some(c"sysfs"), nothing, None::<&CStr>))?;
    match fork_here("starting the second run")? {
        ForkResult::Parent { child } => {
            close_all_but(guard_is_gone.as_fd());
            reap_until(child)
        }
        ForkResult::Child => Ok(()),
    }
}

/// The number this process has outside the sandbox, as text in `buffer`. Makes one system call.
pub(crate) fn number_outside(buffer: &mut [u8]) -> nix::Result<usize> {
    const OWN_LINK: &CStr = c"/run/outside-proc/self";
    #[expect(unsafe_code, reason = "nix allocates for readlink, and this runs between fork and exec")]
    // SAFETY: the path ends in a zero and the buffer is writable for the length given.
    let length = unsafe { libc::readlink(OWN_LINK.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    nix::errno::Errno::result(length).map(|length| usize::try_from(length).unwrap_or(0))
}

pub(crate) fn private() -> MsFlags {
    MsFlags::MS_REC | MsFlags::MS_PRIVATE
}

fn write_file(path: &CStr, content: &[u8]) -> nix::Result<()> {
    let file = open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    write(&file, content).map(|_| ())
}

/// Says on standard error which step failed: only a number survives the way back to the test.
fn step<T>(what: &'static str, result: nix::Result<T>) -> io::Result<T> {
    result.map_err(|error| {
        let stderr = io::stderr();
        for part in ["the sandbox failed at: ", what, ": ", error.desc(), "; `make doctor` says what to change\n"] {
            // There is nowhere else to say that saying it failed.
            let _ = write(&stderr, part.as_bytes());
        }
        error.into()
    })
}

#[expect(unsafe_code, reason = "fork")]
fn fork_here(what: &'static str) -> io::Result<ForkResult> {
    // SAFETY: every caller runs between fork and exec, where this process has one thread.
    step(what, unsafe { fork() })
}

/// Closes everything a long-lived in-between process would hold open by accident, such as the pipe by which
/// `Command` learns that exec succeeded.
#[expect(unsafe_code, reason = "closing descriptors that others own")]
pub(crate) fn close_all_but(kept: BorrowedFd<'_>) {
    let kept = u32::try_from(kept.as_raw_fd()).unwrap_or(3);
    // SAFETY: the callers never return to code that owns one of these descriptors.
    unsafe {
        if kept > 3 {
            libc::close_range(3, kept - 1, 0);
        }
        libc::close_range(kept.max(2) + 1, u32::MAX, 0);
    }
}

fn hung_up(pipe: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(pipe, PollFlags::POLLIN)];
    matches!(poll(&mut polled, PollTimeout::ZERO), Ok(events) if events > 0)
}

fn end_like(child: Pid) -> ! {
    loop {
        match waitpid(child, None) {
            Ok(status) => leave_if_ended(status),
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => leave(1),
        }
    }
}

fn reap_until(child: Pid) -> ! {
    loop {
        match waitpid(None, None) {
            Ok(status) if status.pid() == Some(child) => leave_if_ended(status),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(_) => leave(1),
        }
    }
}

fn leave_if_ended(status: WaitStatus) {
    match status {
        WaitStatus::Exited(_, code) => leave(code),
        WaitStatus::Signaled(_, signal, _) => leave(ENDED_BY_SIGNAL + signal as i32),
        _ => {}
    }
}

/// Ends this process without running anything that belongs to the program it was forked from.
#[expect(unsafe_code, reason = "exit handlers of the forking program must not run")]
pub(crate) fn leave(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}
