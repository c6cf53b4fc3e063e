//! `tombolo events` and `tombolo refusals`: what changed, and what was refused.

use std::path::Path;
use std::time::Duration;

use api::report::{EventReport, RefusalReport};
use serde::Serialize;

use crate::ask::{Part, ask_as};
use crate::output::{Format, Outcome, Table, age, seconds};

#[derive(Serialize)]
struct PartEvent {
    part: &'static str,
    #[serde(flatten)]
    event: EventReport,
}

#[derive(Serialize)]
struct PartRefusal {
    part: &'static str,
    #[serde(flatten)]
    refusal: RefusalReport,
}

/// Prints the transitions of the parts on this host, oldest first.
pub async fn events(run_dir: &Path, since: Duration, format: Format) -> anyhow::Result<Outcome> {
    let mut events = Vec::new();
    let mut answered = false;
    for part in Part::ALL {
        if let Some(some) =
            ask_as::<Vec<EventReport>>(run_dir, part, &format!("events?since={}", since.as_secs())).await
        {
            answered = true;
            events.extend(some.into_iter().map(|event| PartEvent { part: part.name(), event }));
        }
    }
    if !answered {
        return Ok(crate::ask::nobody_answers(run_dir));
    }
    events.sort_by_key(|entry| (entry.event.at, entry.event.sequence));
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&events)?),
        Format::Text if events.is_empty() => println!("nothing changed in the last {}", age(since)),
        Format::Text => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            let mut table = Table::new(&["AGE", "PART", "WHAT", "CHANGE", "WHY"]);
            for PartEvent { part, event } in &events {
                let of_part =
                    |number: u64| events.iter().find(|other| other.part == *part && other.event.sequence == number);
                let cause = event.cause.and_then(of_part).map(|cause| format!("  ← {}", cause.event.subject));
                table.row([
                    age(now.saturating_sub(Duration::from_millis(event.at))),
                    (*part).to_owned(),
                    event.subject.clone(),
                    // What was first seen changed from nothing.
                    if event.before.is_empty() {
                        event.after.clone()
                    } else {
                        format!("{} → {}", event.before, event.after)
                    },
                    format!("{}{}", event.reason, cause.unwrap_or_default()),
                ]);
            }
            print!("{}", table.render());
        }
    }
    Ok(Outcome::Good)
}

/// Prints what the parts on this host refused lately.
pub async fn refusals(run_dir: &Path, format: Format) -> anyhow::Result<Outcome> {
    let mut refusals = Vec::new();
    let mut answered = false;
    for part in Part::ALL {
        if let Some(some) = ask_as::<Vec<RefusalReport>>(run_dir, part, "refusals").await {
            answered = true;
            refusals.extend(some.into_iter().map(|refusal| PartRefusal { part: part.name(), refusal }));
        }
    }
    if !answered {
        return Ok(crate::ask::nobody_answers(run_dir));
    }
    refusals.sort_by(|a, b| a.refusal.age.total_cmp(&b.refusal.age));
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&refusals)?),
        Format::Text if refusals.is_empty() => println!("nothing was refused"),
        Format::Text => {
            let mut table = Table::new(&["LAST", "PART", "REASON", "PEER", "PROTOCOL", "FROM", "TO", "COUNT"]);
            for PartRefusal { part, refusal } in &refusals {
                let peer = if refusal.peer.is_empty() { "?" } else { &refusal.peer };
                table.row([
                    seconds(refusal.age),
                    (*part).to_owned(),
                    refusal.reason.clone(),
                    peer.to_owned(),
                    refusal.protocol.clone(),
                    refusal.source.clone(),
                    refusal.destination.clone(),
                    refusal.count.to_string(),
                ]);
            }
            print!("{}", table.render());
        }
    }
    Ok(Outcome::Good)
}
