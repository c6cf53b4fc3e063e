//! [`OtherPrograms`]: how much of the cores we may use went to programs that are not ours.

use std::fs;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

/// A span of time in which the machine's other programs are watched. The sandbox has its own process numbers, so every
/// process seen in `/proc` is ours, and what else the cores did was done for others.
pub struct OtherPrograms {
    cores: Vec<usize>,
    begin: Ticks,
}

/// In the kernel's ticks, a hundredth of a second as a rule.
#[derive(Clone, Copy)]
struct Ticks {
    /// All the time our cores had.
    whole: u64,
    /// What programs ran, and what a hypervisor took. Without interrupts: our own packets are most of those.
    busy: u64,
    /// What ours ran, those that ended included.
    ours: u64,
}

impl OtherPrograms {
    /// Begins now.
    pub fn watch() -> Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).context("asking for the cores this process may use")?;
        let cores: Vec<usize> = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false)).collect();
        let begin = now(&cores)?;
        Ok(Self { cores, begin })
    }

    /// Since then, in percent of all the time our cores had: one of two cores held by others is 50.
    pub fn percent(&self) -> Result<f64> {
        let now = now(&self.cores)?;
        Ok(share(self.begin, now))
    }
}

fn share(begin: Ticks, end: Ticks) -> f64 {
    let whole = end.whole.saturating_sub(begin.whole);
    let busy = end.busy.saturating_sub(begin.busy);
    let ours = end.ours.saturating_sub(begin.ours);
    if whole == 0 { 0.0 } else { 100.0 * busy.saturating_sub(ours) as f64 / whole as f64 }
}

fn now(cores: &[usize]) -> Result<Ticks> {
    let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let (whole, busy) = of_cores(&text, cores);
    Ok(Ticks { whole, busy, ours: of_our_processes()? })
}

/// All ticks and busy ticks of these cores, out of `/proc/stat` (proc_stat(5)).
fn of_cores(text: &str, cores: &[usize]) -> (u64, u64) {
    let (mut whole, mut busy) = (0, 0);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let core = words.next().and_then(|word| word.strip_prefix("cpu")).and_then(|number| number.parse().ok());
        if !core.is_some_and(|core| cores.contains(&core)) {
            continue;
        }
        let ticks: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
        let at = |place: usize| ticks.get(place).copied().unwrap_or(0);
        // user, nice, system, idle, iowait, irq, softirq, steal; what follows is counted in user already.
        whole += ticks.iter().take(8).sum::<u64>();
        busy += at(0) + at(1) + at(2) + at(7);
    }
    (whole, busy)
}

fn of_our_processes() -> Result<u64> {
    let entries = fs::read_dir("/proc").context("reading /proc")?.filter_map(Result::ok);
    let numbers = entries.filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()));
    // One that ended meanwhile is counted by its parent.
    let texts = numbers.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    Ok(texts.map(|text| of_process(&text)).sum())
}

/// Ticks of a process and of its children that ended, out of its `stat` (proc_pid_stat(5), fields 14 to 17).
fn of_process(text: &str) -> u64 {
    // The name, in brackets, may hold anything.
    let Some((_, fields)) = text.rsplit_once(')') else { return 0 };
    fields.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  900 9 90 900 9 9 90 9 0 0\n\
                        cpu0 100 10 20 500 30 1 2 4 7 0\n\
                        cpu1 1000 0 0 0 0 0 0 0 0 0\n\
                        intr 1 2 3\n";

    #[test]
    fn waiting_and_interrupts_are_no_work_of_programs_and_a_hypervisors_share_is() {
        assert_eq!(of_cores(STAT, &[0]), (667, 134));
        assert_eq!(of_cores(STAT, &[0, 1]), (1667, 1134));
        assert_eq!(of_cores("nonsense\ncpu0\n", &[0]), (0, 0));
    }

    #[test]
    fn a_process_counts_with_its_children_whatever_its_name() {
        let text = "7 (a) b) S 1 7 7 0 -1 4194304 93 0 0 0 11 12 13 14 20 0 1 0 33 0 0";
        assert_eq!(of_process(text), 50);
        assert_eq!(of_process("7 (torn"), 0);
    }

    #[test]
    fn what_is_not_ours_is_the_others() {
        let begin = Ticks { whole: 1_000, busy: 500, ours: 400 };
        assert!((share(begin, Ticks { whole: 1_200, busy: 600, ours: 450 }) - 25.0).abs() < 1e-9);
        assert!(share(begin, Ticks { whole: 1_200, busy: 500, ours: 450 }) == 0.0, "rounding is no load");
        assert!(share(begin, begin) == 0.0);
    }
}
