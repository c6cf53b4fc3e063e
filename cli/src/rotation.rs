//! What `tombolo keys` and `tombolo identity` share: an order to this host's controller, and the wait for its end.

use std::path::Path;
use std::time::Duration;

use api::report::{ControllerReport, OrderReport};
use tokio::time::Instant;

use crate::ask::{Ordered, Part, ask_as, explain_silence, order};
use crate::output::Outcome;

/// How long `--wait` waits: gateways and peers that are up need a few seconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(200);

/// Gives an order and, for people, says what it changed. `Err` holds how the command ends where it was not carried out.
pub(crate) async fn give(run_dir: &Path, wanted: &str, text: bool) -> anyhow::Result<Result<OrderReport, Outcome>> {
    let report: OrderReport = match order(run_dir, Part::Controller, wanted).await {
        Ordered::Done(report) => serde_json::from_value(report)?,
        Ordered::Refused(reason) => {
            eprintln!("refused: {reason}");
            return Ok(Err(Outcome::Refused));
        }
        Ordered::Unanswered(silence) => return Ok(Err(explain_silence(run_dir, Part::Controller, &silence))),
    };
    if text {
        match report.changed {
            true => println!("{}: {} → {}", report.subject, report.before, report.after),
            false => println!("{}: {} already", report.subject, report.after),
        }
    }
    Ok(Ok(report))
}

/// Asks the controller until `is_over` what `read` finds in its status. What was found last; `None` where the controller
/// never said whether `what` is gone; that is told on stderr.
pub(crate) async fn wait<T>(
    run_dir: &Path,
    what: &str,
    read: impl Fn(ControllerReport) -> Option<T>,
    mut is_over: impl FnMut(&T) -> bool,
) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    let mut last = None;
    while Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
        let report: Option<ControllerReport> = ask_as(run_dir, Part::Controller, "status").await;
        let Some(found) = report.and_then(&read) else { continue };
        let over = is_over(&found);
        last = Some(found);
        if over {
            break;
        }
    }
    if last.is_none() {
        eprintln!("the controller did not say within {} s whether {what} is gone", PATIENCE.as_secs());
        eprintln!("  it goes on; run: tombolo status");
    }
    last
}
