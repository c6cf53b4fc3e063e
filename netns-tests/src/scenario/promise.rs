//! [`keep`]: a promised time is measured, and holds or is broken. Other programs on the machine are the only excuse,
//! once, and only when they are measured too.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::scenario::other_programs::OtherPrograms;

/// What other programs may take of our cores without being an excuse: a quarter. That much is free on two cores while
/// endpoints change without pause; a compiler on one of them takes more.
pub const EXCUSE_PERCENT: f64 = 25.0;

/// How long a second measurement waits for other programs to pause: a crate's compilation, not a whole build.
const WAIT_FOR_QUIET: Duration = Duration::from_secs(30);

/// One look at whether they paused.
const QUIET_FOR: Duration = Duration::from_secs(1);

/// One time that was promised.
pub struct Promise {
    pub what: &'static str,
    pub limit: Duration,
    pub measured: Duration,
}

impl Promise {
    fn is_kept(&self) -> bool {
        self.measured <= self.limit
    }
}

impl std::fmt::Display for Promise {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        write!(formatter, "{} {:.1} ms", self.what, milliseconds(self.measured))?;
        write!(formatter, ", promised within {:.0} ms", milliseconds(self.limit))
    }
}

/// Measures and holds what was measured to its promises; returns it with what is to be said about it.
///
/// When a promise is broken while other programs held more than a quarter of our cores, everything is measured once
/// more, after they paused or half a minute later. Errors: a promise is broken, and this is no excuse or the second
/// time; the error names the time, its limit and what the others took.
pub fn keep<T>(measure: impl Fn() -> Result<T>, promises: impl Fn(&T) -> Vec<Promise>) -> Result<(T, Option<String>)> {
    let first = Attempt::of(&measure, &promises)?;
    let Some(broken) = &first.broken else { return Ok((first.seen, None)) };
    let said = format!("{broken}, while other programs took {:.0} % of the cores", first.others);
    ensure!(first.others >= EXCUSE_PERCENT, "{said}");
    wait_for_quiet()?;
    let second = Attempt::of(&measure, &promises)?;
    if let Some(broken) = &second.broken {
        anyhow::bail!("{said}; measured again: {broken}, while they took {:.0} %", second.others);
    }
    Ok((second.seen, Some(format!("measured again: first {said}"))))
}

struct Attempt<T> {
    seen: T,
    broken: Option<Promise>,
    others: f64,
}

impl<T> Attempt<T> {
    fn of(measure: &impl Fn() -> Result<T>, promises: &impl Fn(&T) -> Vec<Promise>) -> Result<Self> {
        let watch = OtherPrograms::watch()?;
        let seen = measure()?;
        let others = watch.percent()?;
        let broken = promises(&seen).into_iter().find(|promise| !promise.is_kept());
        Ok(Self { seen, broken, others })
    }
}

fn wait_for_quiet() -> Result<()> {
    let deadline = Instant::now() + WAIT_FOR_QUIET;
    while Instant::now() < deadline {
        let watch = OtherPrograms::watch()?;
        std::thread::sleep(QUIET_FOR);
        if watch.percent()? < EXCUSE_PERCENT {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promises(measured: &Duration) -> Vec<Promise> {
        vec![Promise { what: "a test", limit: Duration::from_secs(1), measured: *measured }]
    }

    #[test]
    fn a_kept_promise_is_measured_once() {
        let measured = std::cell::Cell::new(0);
        let measure = || {
            measured.set(measured.get() + 1);
            Ok(Duration::from_secs(1))
        };
        let (seen, said) = keep(measure, promises).unwrap();
        assert_eq!((seen, said, measured.get()), (Duration::from_secs(1), None, 1));
    }

    #[test]
    fn a_time_that_is_always_over_its_limit_is_an_error_however_busy_the_machine_is() {
        let error = keep(|| Ok(Duration::from_millis(1_001)), promises).unwrap_err().to_string();
        assert!(error.contains("a test 1001.0 ms, promised within 1000 ms"), "{error}");
    }

    #[test]
    fn a_measurement_that_fails_is_no_broken_promise() {
        let error = keep(|| -> Result<Duration> { anyhow::bail!("no connection") }, promises).unwrap_err();
        assert_eq!(error.to_string(), "no connection");
    }
}
