//! `tombolo keys rotate` and `tombolo keys retire`: gives the gateways of this cluster new WireGuard keys.
//!
//! The order goes to this host's controller, which makes the keys; the gateways go over to them by themselves.

use std::path::Path;
use std::time::Duration;

use api::report::{ControllerReport, OrderReport, RotationReport};
use serde::Serialize;
use tokio::time::Instant;

use crate::arguments::KeysArguments;
use crate::ask::{Ordered, Part, ask_as, explain_silence, order};
use crate::output::{Format, Outcome, seconds};

/// How long `--wait` waits: gateways that reach each other need a few seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the controller may take until its status shows an order: its picture is drawn twice a second, and a rotation
/// itself takes a second at least.
const SHOWS_WITHIN: Duration = Duration::from_secs(5);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(200);

/// The whole answer, as `-o json` prints it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    order: OrderReport,
    /// What still has two sets of keys, after `--wait`.
    left: Option<Vec<RotationReport>>,
}

/// Begins to replace the keys, or takes the old ones away at once with `retire`.
pub async fn run(run_dir: &Path, keys: &KeysArguments, retire: bool) -> anyhow::Result<Outcome> {
    let slot = keys.gateway.map(|slot| format!("slot={slot}&")).unwrap_or_default();
    let report: OrderReport = match order(run_dir, Part::Controller, &format!("keys?{slot}retire={retire}")).await {
        Ordered::Done(report) => serde_json::from_value(report)?,
        Ordered::Refused(reason) => {
            eprintln!("refused: {reason}");
            return Ok(Outcome::Refused);
        }
        Ordered::Unanswered(silence) => return Ok(explain_silence(run_dir, Part::Controller, &silence)),
    };
    let text = keys.shown.format == Format::Text;
    if text {
        match report.changed {
            true => println!("{}: {} → {}", report.subject, report.before, report.after),
            false => println!("{}: {} already", report.subject, report.after),
        }
    }
    let waited = match keys.wait {
        true => Some(wait(run_dir, keys.gateway, report.changed && !retire).await),
        false => None,
    };
    let outcome = match &waited {
        None => Outcome::Good,
        Some(Some(left)) if left.is_empty() => Outcome::Good,
        Some(Some(_)) => Outcome::FoundBad,
        Some(None) => Outcome::CouldNotFindOut,
    };
    let within = PATIENCE.as_secs();
    if waited == Some(None) {
        eprintln!("the controller did not say within {within} s whether the old keys are gone");
        eprintln!("  it goes on; run: tombolo status");
    }
    let left = waited.flatten();
    if text {
        for rotation in left.iter().flatten() {
            eprintln!("not within {within} s: {}\n  it goes on; run: tombolo status", describe(rotation));
        }
        if left.as_ref().is_some_and(Vec::is_empty) {
            println!("the old keys are gone");
        }
    } else {
        println!("{}", serde_json::to_string_pretty(&Answer { order: report, left })?);
    }
    Ok(outcome)
}

/// Waits until the old keys are gone; where they were just ordered away, after they were seen to rotate. Gives those that
/// are not gone in time; `None` where the controller never said.
async fn wait(run_dir: &Path, slot: Option<u16>, begins: bool) -> Option<Vec<RotationReport>> {
    let (deadline, shows_by) = (Instant::now() + PATIENCE, Instant::now() + SHOWS_WITHIN);
    let mut began = !begins;
    let mut left = None;
    while Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
        let report: Option<ControllerReport> = ask_as(run_dir, Part::Controller, "status").await;
        // A controller that just began has not read the keys yet.
        let Some(rotations) = report.and_then(|report| report.rotations) else { continue };
        let of_slot = |rotation: &RotationReport| slot.is_none_or(|slot| slot == rotation.slot);
        let rotating: Vec<RotationReport> = rotations.into_iter().filter(of_slot).collect();
        began |= !rotating.is_empty() || Instant::now() >= shows_by;
        let is_over = rotating.is_empty() && began;
        left = Some(rotating);
        if is_over {
            break;
        }
    }
    left
}

/// Who holds a rotation up, in words.
pub fn describe(rotation: &RotationReport) -> String {
    let RotationReport { slot, age, ends_in, told, waiting_for } = rotation;
    let holds = match (told, waiting_for.as_slice()) {
        (false, _) => "no gateway that runs has told who needs the old ones".to_owned(),
        (true, []) => "nobody needs the old ones".to_owned(),
        (true, [one]) => format!("{one} still needs the old ones"),
        (true, several) => format!("{} still need the old ones", several.join(", ")),
    };
    let until = format!("they are kept for {} at most", seconds(*ends_in));
    format!("gateway {slot}: new keys for {}; {holds}; {until}", seconds(*age))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_says_its_age_who_holds_it_up_and_when_it_ends() {
        let told = |waiting_for: &[&str]| RotationReport {
            slot: 1,
            age: 180.0,
            ends_in: 518_400.0,
            told: true,
            waiting_for: waiting_for.iter().map(ToString::to_string).collect(),
        };
        let text = describe(&told(&["cedar"]));
        assert_eq!(
            text, "gateway 1: new keys for 3m; cedar still needs the old ones; they are kept for 6d at most",
            "{text}"
        );
        assert!(describe(&told(&["cedar", "elm"])).contains("cedar, elm still need"));
        assert!(describe(&RotationReport { told: false, ..told(&[]) }).contains("no gateway that runs"));
    }
}
