//! [`WallClock`]: whether the wall clock went back since this gateway last ran.
//!
//! Handshakes carry the time of the wall clock, and a peer takes none that is older than the last it saw (WireGuard
//! whitepaper, 5.4.2). After the clock went back, every handshake of ours is refused in silence until the clock has
//! caught up, or the peer calls us. Nobody could find that out from outside, so it is written down and said.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use api::time::WallTime;

/// Clocks are set right by some milliseconds all the time; less than this is not worth a word.
const TOLERANCE: Duration = Duration::from_secs(1);

/// The latest wall time this gateway has used, kept on disk.
#[derive(Debug)]
pub(crate) struct WallClock {
    path: PathBuf,
    latest: WallTime,
}

impl WallClock {
    /// Reads what the last process wrote; a file that is missing or broken says nothing about the clock.
    pub(crate) fn load(path: PathBuf) -> Self {
        let latest = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default();
        Self { path, latest: WallTime::from_millis(latest) }
    }

    /// By how much the clock is behind the latest time used; `None` when it is not.
    pub(crate) fn went_back(&self, now: WallTime) -> Option<Duration> {
        let behind = Duration::from_millis(self.latest.as_millis().saturating_sub(now.as_millis()));
        (behind > TOLERANCE).then_some(behind)
    }

    /// Writes the time down if it is the latest.
    pub(crate) fn advance(&mut self, now: WallTime) -> anyhow::Result<()> {
        if now <= self.latest {
            return Ok(());
        }
        self.latest = now;
        let replaced = store::state_file::replace(&self.path, now.as_millis().to_string().as_bytes());
        replaced.with_context(|| format!("writing {}: is the disk full, or the folder not ours?", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_went_back_is_noticed_by_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wall-time");
        let mut clock = WallClock::load(path.clone());
        assert_eq!(clock.went_back(WallTime::from_millis(1)), None, "nothing is known yet");
        clock.advance(WallTime::from_millis(100_000)).unwrap();
        let mut next = WallClock::load(path.clone());
        assert_eq!(next.went_back(WallTime::from_millis(99_500)), None, "half a second is no news");
        assert_eq!(next.went_back(WallTime::from_millis(40_000)), Some(Duration::from_secs(60)));
        next.advance(WallTime::from_millis(40_000)).unwrap();
        assert!(WallClock::load(path).went_back(WallTime::from_millis(40_000)).is_some(), "the latest time stays");
    }

    #[test]
    fn a_broken_file_is_as_good_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wall-time");
        std::fs::write(&path, b"\xff\xffnot a number").unwrap();
        assert_eq!(WallClock::load(path).went_back(WallTime::default()), None);
    }
}
