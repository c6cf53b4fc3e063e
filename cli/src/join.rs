//! `tombolo join`: introduces two clusters to each other through their API servers, and shows what proves each step.

mod introduction;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use api::conditions::ConditionType;
use api::{ClusterPeer, LocalCluster, TunnelGateway, names};
use serde::Serialize;
use store::Store;

use crate::arguments::JoinArguments;
use crate::output::{Format, Glyph, Outcome};
use introduction::{Deed, Progress, Refusal, Seen, check, deed, path_mtu, progress};

/// How often the clusters are asked how far they are.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// One line of the answer.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Step {
    what: String,
    good: bool,
    /// What shows it, or why not yet.
    proof: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    remedy: String,
}

/// Says each step as it is done.
struct Said {
    format: Format,
    steps: Vec<Step>,
}

impl Said {
    fn say(&mut self, what: String, good: bool, proof: String, remedy: &str) {
        let step = Step { what, good, proof, remedy: if good { String::new() } else { remedy.to_owned() } };
        if self.format == Format::Text {
            let glyph = if good { Glyph::Good } else { Glyph::Bad };
            println!("{} {:<34}  {}", glyph.text(), step.what, step.proof);
            if !step.remedy.is_empty() {
                println!("    {}", step.remedy);
            }
        }
        self.steps.push(step);
    }

    fn end(self) -> anyhow::Result<Outcome> {
        if self.format == Format::Json {
            println!("{}", serde_json::to_string_pretty(&self.steps)?);
        }
        Ok(if self.steps.iter().all(|step| step.good) { Outcome::Good } else { Outcome::FoundBad })
    }
}

/// One of the two clusters.
struct Cluster {
    store: Store,
    seen: Seen,
}

pub async fn run(arguments: &JoinArguments) -> anyhow::Result<Outcome> {
    let kubeconfig = arguments.kubeconfig.as_deref();
    let mut said = Said { format: arguments.shown.format, steps: Vec::new() };
    let mut clusters = Vec::new();
    for context in [&arguments.one, &arguments.other] {
        match look(kubeconfig, context).await? {
            Ok(cluster) => {
                let proof = format!("cluster {}, {}", cluster.seen.id(), cluster.seen.fingerprint());
                said.say(format!("{context} is reached"), true, proof, "");
                clusters.push(cluster);
            }
            Err(refusal) => return Ok(refused(&refusal)),
        }
    }
    let [one, other] = &clusters[..] else { anyhow::bail!("two contexts were asked for") };
    if let Err(refusal) = check(&one.seen, &other.seen, arguments.allow_overlap) {
        return Ok(refused(&refusal));
    }
    let prefixes = |seen: &Seen| seen.record.prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let proof = format!("{} | {}", prefixes(&one.seen), prefixes(&other.seen));
    let what = if arguments.allow_overlap { "prefixes may overlap" } else { "prefixes do not overlap" };
    said.say(what.into(), true, proof, "");

    let directions = [(one, other), (other, one)];
    let mut deeds = Vec::new();
    for (here, there) in directions {
        match deed(&here.seen, &there.seen, arguments.allow_overlap) {
            Ok(deed) => deeds.push(deed),
            // Before anything was written into either.
            Err(refusal) => return Ok(refused(&refusal)),
        }
    }
    for ((here, there), deed) in directions.into_iter().zip(deeds) {
        let what = format!("{} trusts {}", here.seen.id(), there.seen.id());
        let proof = match deed {
            Deed::Nothing => "ClusterPeer was there".to_owned(),
            Deed::Create(_) if arguments.dry_run => "ClusterPeer would be made (dry run)".to_owned(),
            Deed::Create(peer) => {
                here.store.create(&*peer).await.with_context(|| format!("telling {}", here.seen.context))?;
                "ClusterPeer made".to_owned()
            }
        };
        said.say(what, true, proof, "");
    }
    if !arguments.dry_run {
        watch(&mut said, directions, arguments.wait).await?;
    }
    said.end()
}

/// Waits for what each cluster finds out about the other.
async fn watch(said: &mut Said, directions: [(&Cluster, &Cluster); 2], limit: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    for (kind, what, remedy) in [
        (
            ConditionType::Connected,
            "packets reach",
            "open the tunnel's UDP ports of one of them to the other (51820 and up), and check the addresses in its \
             TunnelGateways",
        ),
        (
            ConditionType::Synced,
            "knows what is exported in",
            "see the controllers' logs, and 'tombolo status' in either",
        ),
    ] {
        for (here, there) in directions {
            let (id, peer) = (here.seen.id(), there.seen.id());
            let what = format!("{id}: {what} {peer}");
            loop {
                let found = here.store.get::<ClusterPeer>(None, peer).await?;
                match progress(found.as_ref(), kind) {
                    Progress::Done(proof) => said.say(what, true, proof, ""),
                    Progress::Waiting(why) if Instant::now() >= deadline => said.say(what, false, why, remedy),
                    Progress::Waiting(_) => {
                        tokio::time::sleep(LOOK_EVERY).await;
                        continue;
                    }
                }
                break;
            }
        }
    }
    for (here, there) in directions {
        let what = format!("{}: path MTU to {}", here.seen.id(), there.seen.id());
        let gateways: Vec<TunnelGateway> = here.store.list().await?;
        match path_mtu(&gateways, there.seen.id()) {
            Some(mtu) => said.say(what, true, format!("{mtu} bytes inside the tunnel"), ""),
            None => said.say(what, true, "is still being measured".into(), ""),
        }
    }
    Ok(())
}

async fn look(kubeconfig: Option<&Path>, context: &str) -> anyhow::Result<Result<Cluster, Refusal>> {
    let store = store::kubernetes::connect_to(kubeconfig, context).await?;
    let unanswered = || format!("{context}: its API server does not answer, or knows no Tombolo");
    let local = store.get::<LocalCluster>(None, names::LOCAL_CLUSTER).await.with_context(unanswered)?;
    let peers = store.list::<ClusterPeer>().await.with_context(unanswered)?;
    Ok(Seen::read(context, local, peers).map(|seen| Cluster { store, seen }))
}

fn refused(refusal: &Refusal) -> Outcome {
    eprintln!("{refusal}");
    Outcome::Refused
}
