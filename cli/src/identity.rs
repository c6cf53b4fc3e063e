//! `tombolo identity rotate` and `tombolo identity retire`: gives this cluster another identity.
//!
//! The order goes to this host's controller, which makes it and tells the peers; they go over to it by themselves.

use std::path::Path;

use api::report::{ControllerReport, IdentityRotationReport, OrderReport};
use serde::Serialize;

use crate::arguments::IdentityArguments;
use crate::ask::{Part, ask_as};
use crate::output::{Format, Outcome, seconds};
use crate::rotation;

/// The whole answer, as `-o json` prints it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    order: OrderReport,
    /// How it stands after `--wait`.
    left: Option<Left>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Left {
    fingerprint: String,
    /// None once the old identity is gone.
    rotation: Option<IdentityRotationReport>,
}

/// Begins to replace the identity, or takes the old one away at once with `retire`.
pub async fn run(run_dir: &Path, arguments: &IdentityArguments, retire: bool) -> anyhow::Result<Outcome> {
    let before: Option<ControllerReport> = ask_as(run_dir, Part::Controller, "status").await;
    let text = arguments.shown.format == Format::Text;
    let order = match rotation::give(run_dir, &format!("identity?retire={retire}"), text).await? {
        Ok(order) => order,
        Err(outcome) => return Ok(outcome),
    };
    let old = before.filter(|_| order.changed).map(|report| report.fingerprint).unwrap_or_default();
    let (left, outcome) = if arguments.wait {
        let left = wait(run_dir, &old).await;
        let outcome = match &left {
            Some(left) if left.is_over(&old) => Outcome::Good,
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
    match left {
        Some(left) if left.is_over(&old) => println!("the old identity is gone; this cluster is {}", left.fingerprint),
        Some(left) => {
            let (within, rotation) = (rotation::PATIENCE.as_secs(), left.rotation.as_ref());
            let rotation = rotation.map_or_else(|| "it is not signed yet".to_owned(), describe);
            eprintln!("not within {within} s: {rotation}\n  it goes on; run: tombolo status");
        }
        None => {}
    }
    Ok(outcome)
}

impl Left {
    /// The record says at once that there is a next identity, and status after half a second: so what was the identity
    /// before must be gone as well.
    fn is_over(&self, old: &str) -> bool {
        self.rotation.is_none() && !self.fingerprint.is_empty() && self.fingerprint != old
    }
}

/// Waits until `old` and every rotation are gone. What was seen last; `None` where the controller never said.
async fn wait(run_dir: &Path, old: &str) -> Option<Left> {
    let read =
        |report: ControllerReport| Some(Left { fingerprint: report.fingerprint, rotation: report.identity_rotation });
    rotation::wait(run_dir, "the old identity", read, |left| left.is_over(old)).await
}

/// Who holds a rotation up, in words.
pub fn describe(rotation: &IdentityRotationReport) -> String {
    let IdentityRotationReport { next, age, ends_in, told, waiting_for } = rotation;
    let holds = match (told, waiting_for.as_slice()) {
        (false, _) => "the controller does not know its peers yet".to_owned(),
        (true, []) => "every peer trusts it".to_owned(),
        (true, [one]) => format!("{one} does not trust it yet"),
        (true, several) => format!("{} do not trust it yet", several.join(", ")),
    };
    let until = format!("the old one is kept for {} at most", seconds(*ends_in));
    format!("identity: next one {next} for {}; {holds}; {until}", seconds(*age))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_says_its_age_who_holds_it_up_and_when_it_ends() {
        let told = |waiting_for: &[&str]| IdentityRotationReport {
            next: "SHA256:abc".into(),
            age: 180.0,
            ends_in: 518_400.0,
            told: true,
            waiting_for: waiting_for.iter().map(ToString::to_string).collect(),
        };
        let text = describe(&told(&["cedar"]));
        assert_eq!(
            text,
            "identity: next one SHA256:abc for 3m; cedar does not trust it yet; the old one is kept for 6d at most"
        );
        assert!(describe(&told(&["cedar", "elm"])).contains("cedar, elm do not trust it"));
        assert!(describe(&IdentityRotationReport { told: false, ..told(&[]) }).contains("does not know its peers"));
    }

    #[test]
    fn what_was_shown_before_the_order_is_not_its_end() {
        let left = |fingerprint: &str| Left { fingerprint: fingerprint.into(), rotation: None };
        assert!(!left("old").is_over("old") && !left("").is_over("old") && left("new").is_over("old"));
        let rotation = Some(IdentityRotationReport::default());
        assert!(!Left { rotation, ..left("new") }.is_over("old"));
    }
}
