//! `tombolo keys rotate` and `tombolo keys retire`: gives the gateways of this cluster new WireGuard keys.
//!
//! The order goes to this host's controller, which makes the keys; the gateways go over to them by themselves.

use std::path::Path;
use std::time::Duration;

use api::report::{ControllerReport, OrderReport, RotationReport};
use serde::Serialize;
use tokio::time::Instant;

use crate::arguments::KeysArguments;
use crate::output::{Format, Outcome, seconds};
use crate::rotation;

/// How long the controller may take until its status shows an order: its picture is drawn twice a second, and a rotation
/// itself takes a second at least.
const SHOWS_WITHIN: Duration = Duration::from_secs(5);

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
    let text = keys.shown.format == Format::Text;
    let order = match rotation::give(run_dir, &format!("keys?{slot}retire={retire}"), text).await? {
        Ok(order) => order,
        Err(outcome) => return Ok(outcome),
    };
    let (left, outcome) = if keys.wait {
        let left = wait(run_dir, keys.gateway, order.changed && !retire).await;
        let outcome = match left.as_deref() {
            Some([]) => Outcome::Good,
            Some(_) => Outcome::FoundBad,
            None => Outcome::CouldNotFindOut,
        };
        (left, outcome)
    } else {
        (None, Outcome::Good)
    };
    if !text {
        println!("{}", serde_json::to_string_pretty(&Answer { order, left })?);
        return Ok(outcome);
    }
    for rotation in left.iter().flatten() {
        let within = rotation::PATIENCE.as_secs();
        eprintln!("not within {within} s: {}\n  it goes on; run: tombolo status", describe(rotation));
    }
    if left.is_some_and(|left| left.is_empty()) {
        println!("the old keys are gone");
    }
    Ok(outcome)
}

/// Waits until the old keys are gone; where they were just ordered away, after they were seen to rotate. Gives those that
/// are not gone in time; `None` where the controller never said.
async fn wait(run_dir: &Path, slot: Option<u16>, begins: bool) -> Option<Vec<RotationReport>> {
    let shows_by = Instant::now() + SHOWS_WITHIN;
    let mut began = !begins;
    let rotating = |report: ControllerReport| {
        // A controller that just began has not read the keys yet.
        let of_slot = |rotation: &RotationReport| slot.is_none_or(|slot| slot == rotation.slot);
        Some(report.rotations?.into_iter().filter(of_slot).collect::<Vec<_>>())
    };
    let is_over = |rotating: &Vec<RotationReport>| {
        began |= !rotating.is_empty() || Instant::now() >= shows_by;
        rotating.is_empty() && began
    };
    rotation::wait(run_dir, "every old key", rotating, is_over).await
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
