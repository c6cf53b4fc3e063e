//! The operator's tool, asked in a running cluster: what `docs/cli.md` and `docs/metrics.md` say is what happens.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use api::report::{
    ControllerReport, EventReport, GatewayReport, NameReport, NodeReport, PathReport, PeerSync, PingReport,
    RefusalReport, ServiceReport,
};
use netns_tests::deployment::{Deployment, Part};
use netns_tests::manifest::Service;
use netns_tests::scenario::three_clusters::{PATIENCE, ThreeClusters};
use netns_tests::traffic::surface;
use netns_tests::{Node, world_test};
use serde::de::DeserializeOwned;

const GOOD: i32 = 0;
const FOUND_BAD: i32 = 1;
const USAGE: i32 = 2;
const COULD_NOT_FIND_OUT: i32 = 3;
const REFUSED: i32 = 4;

/// The operator at one host of a cluster.
struct Operator<'a> {
    deployment: &'a Deployment,
    node: &'a Node,
}

impl<'a> Operator<'a> {
    fn at_the_gateway_of(deployment: &'a Deployment) -> Result<Self> {
        Ok(Self { deployment, node: deployment.cluster().gateway()? })
    }

    /// What a command prints on stdout, and on stderr. Errors when it ends otherwise than with `code`.
    fn types(&self, command: &str, code: i32) -> Result<(String, String)> {
        let arguments: Vec<&str> = command.split(' ').collect();
        let output = self.deployment.tombolo(self.node, &arguments)?;
        let (data, rest) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
        ensure!(output.status.code() == Some(code), "tombolo {command}: {}, not {code}:\n{data}{rest}", output.status);
        Ok((data, rest))
    }

    /// The answer of a command with `-o json`.
    fn reads<T: DeserializeOwned>(&self, command: &str, code: i32) -> Result<T> {
        let (data, _) = self.types(&format!("{command} -o json"), code)?;
        serde_json::from_str(&data).with_context(|| format!("tombolo {command} -o json:\n{data}"))
    }

    /// Waits until a command ends with `code` and prints each of `texts`.
    fn waits_for(&self, command: &str, code: i32, texts: &[&str]) -> Result<()> {
        self.deployment.eventually(PATIENCE, &format!("tombolo {command} says {texts:?}"), || {
            let (data, _) = self.types(command, code)?;
            ensure!(texts.iter().all(|text| data.contains(text)), "tombolo {command}:\n{data}");
            Ok(())
        })
    }
}

#[test]
fn every_question_has_an_answer_for_people_and_the_same_for_programs() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        let operator = Operator::at_the_gateway_of(&clusters.amber)?;
        operator.waits_for("status", GOOD, &["4/4 parts ready", "PEER", "birch  Up", "cedar  Up"])?;
        let status: serde_json::Value = operator.reads("status", GOOD)?;
        let controller: ControllerReport = serde_json::from_value(status["controller"].clone())?;
        let gateway: GatewayReport = serde_json::from_value(status["gateway"].clone())?;
        let node: NodeReport = serde_json::from_value(status["node"].clone())?;
        ensure!(controller.cluster_id == "amber" && gateway.slot == Some(0) && node.services == 1, "{status}");

        operator.waits_for("peers", GOOD, &["IDENTITY", "birch  Active  SHA256:", "10.2.0.0/16"])?;
        let peers: Vec<PeerSync> = operator.reads("peers", GOOD)?;
        ensure!(peers.iter().map(|peer| peer.peer.as_str()).eq(["birch", "cedar"]), "{peers:?}");
        let (manifest, _) = operator.types("peers export", GOOD)?;
        ensure!(manifest.contains("kind: ClusterPeer") && manifest.contains(&controller.fingerprint), "{manifest}");

        operator.waits_for("services", GOOD, &["ANSWERED BY", "shop/web", "33% birch, 67% cedar"])?;
        let services: Vec<ServiceReport> = operator.reads("services", GOOD)?;
        ensure!(services.len() == 1 && services[0].service == "shop/web", "{services:?}");
        operator.waits_for("explain service shop/web", GOOD, &["VERDICT", "✓  birch", "✓  cedar", "-  amber"])?;
        let service: ServiceReport = operator.reads("explain service shop/web", GOOD)?;
        ensure!(service.ports.len() == 1 && service.ports[0].clusters.len() == 3, "{service:?}");
        operator.types("explain service shop/nothing", FOUND_BAD)?;

        let name = "web.shop.svc.clusterset.local";
        operator.waits_for(&format!("explain dns {name}"), GOOD, &["✓", "NOERROR", "answer", "because"])?;
        let answer: NameReport = operator.reads(&format!("explain dns {name} --type AAAA"), GOOD)?;
        ensure!(answer.answers.iter().any(|record| record.contains("fd01:1::")), "{answer:?}");
        operator.waits_for("explain dns none.shop.svc.clusterset.local", FOUND_BAD, &["✗", "NXDOMAIN", "because"])?;

        let hops = ["✓ node", "✓ route    10.2.0.0/16", "✓ route    fd00:2::/32", "✓ session", "✓ probes   Up"];
        operator.waits_for("explain path birch", GOOD, &hops)?;
        let path: PathReport = operator.reads("explain path birch", GOOD)?;
        ensure!(path.mtu.is_some() && path.round_trip_ms.is_some(), "{path:?}");
        operator.waits_for("ping birch", GOOD, &["birch gateway 0 lane 0", "ms direct"])?;
        let ping: PingReport = operator.reads("ping birch", GOOD)?;
        ensure!(ping.round_trip_ms.is_some_and(|time| time > 0.0), "{ping:?}");

        operator.waits_for("events", GOOD, &["CHANGE", "path birch", "Unknown → Up"])?;
        let events: Vec<EventReport> = operator.reads("events", GOOD)?;
        ensure!(events.is_sorted_by_key(|event| event.at) && events.iter().all(|event| event.at > 0), "{events:?}");
        operator.types("refusals", GOOD)?;
        let _: Vec<RefusalReport> = operator.reads("refusals", GOOD)?;

        let (definitions, _) = operator.types("crds", GOOD)?;
        ensure!(definitions.matches("\"kind\": \"CustomResourceDefinition\"").count() == 9, "{definitions}");
        ensure!(operator.types("completion bash", GOOD)?.0.contains("tombolo"), "the script names the command");
        for typo in ["frob", "explain service web", "explain path ../birch", "ping a&b", "explain dns a&type=A"] {
            let (data, reason) = operator.types(typo, USAGE)?;
            ensure!(data.is_empty() && !reason.is_empty(), "{typo}: {data}");
        }
        Ok(())
    });
}

#[test]
fn a_dead_peer_is_named_with_its_reason_and_what_to_do() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        clusters.birch.kill_everything()?;
        let operator = Operator::at_the_gateway_of(&clusters.amber)?;
        let what_to_do = "run: tombolo explain path birch";
        operator.waits_for("status", FOUND_BAD, &["birch  Down", "✗ birch: SilentPeer", what_to_do])?;
        operator.waits_for("explain path birch", FOUND_BAD, &["✗ probes   Down (SilentPeer)", "remedy"])?;
        operator.waits_for("ping birch", FOUND_BAD, &["birch: no answer", "check the peer's gateway"])?;
        operator.waits_for("explain service shop/web", GOOD, &["100% cedar", "SilentPeer"])?;
        let moved = ["share shop/web http", "33% birch, 67% cedar → 100% cedar", "birch SilentPeer  ← path birch"];
        operator.waits_for("events", GOOD, &moved)?;
        operator.waits_for("events", GOOD, &["Up → Down", "SilentPeer"])?;
        // Open connections keep their way, and it is not called good.
        let worker = Operator { deployment: &clusters.amber, node: clusters.amber.cluster().worker()? };
        let silent =
            ["✗ route    10.2.0.0/16 PeerDown", "remedy   no gateway of this cluster reaches birch (SilentPeer)"];
        worker.waits_for("explain path birch", FOUND_BAD, &silent)?;
        ensure!(operator.reads::<PingReport>("ping birch", FOUND_BAD)?.round_trip_ms.is_none());
        operator.types("ping cedar", GOOD)?;
        Ok(())
    });
}

#[test]
fn what_does_not_run_cannot_be_found_out_and_is_not_called_bad() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        let amber = &clusters.amber;
        let operator = Operator::at_the_gateway_of(amber)?;
        // Killed: its socket stays, and the status names it. Stopped in good order: it runs elsewhere, or nowhere.
        amber.process(Part::Dns, operator.node)?.kill()?;
        operator.waits_for("status", FOUND_BAD, &["3/4 parts ready", "✗ dns: does not run any more"])?;
        let (data, reason) = operator.types("explain dns web.shop.svc.clusterset.local", COULD_NOT_FIND_OUT)?;
        ensure!(data.is_empty() && reason.contains("dns") && reason.lines().count() == 2, "{reason}");
        amber.process(Part::Controller, operator.node)?.terminate(PATIENCE)?;
        operator.waits_for("status", FOUND_BAD, &["2/3 parts ready", "serving the last known state"])?;
        for command in ["peers", "peers export"] {
            let (data, reason) = operator.types(command, COULD_NOT_FIND_OUT)?;
            ensure!(data.is_empty() && reason.contains("no controller runs on this host"), "{command}: {reason}");
        }
        // The worker has a node agent alone.
        let worker = Operator { deployment: amber, node: amber.cluster().worker()? };
        worker.types("services", GOOD)?;
        for command in ["ping birch", "explain path birch", "explain dns web.shop.svc.clusterset.local"] {
            worker.types(command, COULD_NOT_FIND_OUT)?;
        }
        // Half of the way is better than none: the worker's own kernel says how packets leave it.
        let (data, _) = worker.types("explain path birch", COULD_NOT_FIND_OUT)?;
        ensure!(
            data.contains("✓ route    10.2.0.0/16") && data.contains("→ gateway 0 on 172.31.1.10 by tombolo"),
            "{data}"
        );
        worker.types("explain path pine", FOUND_BAD)?;
        amber.kill_everything()?;
        for command in ["status", "services", "events", "refusals", "ping birch"] {
            let (data, reason) = operator.types(command, COULD_NOT_FIND_OUT)?;
            ensure!(data.is_empty() && reason.lines().count() == 2, "{command}: {data}{reason}");
        }
        Ok(())
    });
}

#[test]
fn cleanup_refuses_while_parts_run_and_then_leaves_nothing_and_restores_settings() {
    world_test(|world| {
        let cluster = world.cluster("amber")?;
        let node = cluster.gateway()?;
        let settings = ["net/ipv4/conf/all/rp_filter", "net/ipv4/fib_multipath_hash_policy"];
        for setting in settings {
            // Other than what Tombolo wants, so that it has something to restore.
            let strict = if setting.ends_with("rp_filter") { "1" } else { "0" };
            node.set(setting, strict)?;
        }
        let before: Vec<String> = settings.iter().map(|setting| node.setting(setting)).collect::<Result<_>>()?;
        let links = || node.links("listing links", async |links| Ok(links.get_links().await?.len()));
        let links_before = links()?;
        let amber = Deployment::start(&cluster)?;
        let operator = Operator { deployment: &amber, node };
        amber.eventually(PATIENCE, "Tombolo made its links", || {
            ensure!(links()? > links_before + 1, "there are {} links", links()?);
            Ok(())
        })?;
        let state = amber.state(node, Part::Node);
        let state = state.parent().context("the host's state folder")?.display().to_string();
        let cleanup = format!("cleanup --state {state}");
        let (_, reason) = operator.types(&cleanup, REFUSED)?;
        ensure!(reason.contains("stop it first"), "{reason}");
        operator.types(&format!("{cleanup} --dry-run"), GOOD)?;

        amber.kill_everything()?;
        let (planned, _) = operator.types(&format!("{cleanup} --dry-run"), GOOD)?;
        ensure!(planned.contains("would remove 1 nftables table\n"), "{planned}");
        let (again, _) = operator.types(&format!("{cleanup} --dry-run"), GOOD)?;
        ensure!(planned == again, "a dry run removed something:\n{planned}{again}");
        let counted: serde_json::Value = operator.reads(&format!("{cleanup} --dry-run"), GOOD)?;
        ensure!(counted["removed"] == false && counted["tables"] == 1 && counted["links"] == 1, "{counted}");
        let (_, reason) = operator.types(&cleanup, REFUSED)?;
        ensure!(reason.contains("connections by way of it end") && reason.contains("--yes"), "{reason}");
        let (still, _) = operator.types(&format!("{cleanup} --dry-run"), GOOD)?;
        ensure!(planned == still, "who could not be asked had something removed:\n{planned}{still}");
        let (removed, _) = operator.types(&format!("{cleanup} --yes"), GOOD)?;
        ensure!(removed == planned.replace("would remove", "removed"), "{planned}{removed}");
        let (nothing, _) = operator.types(&cleanup, GOOD)?;
        ensure!(nothing == "nothing of Tombolo's is in this kernel\n", "{nothing}");
        ensure!(links()? == links_before, "links are left");
        let after: Vec<String> = settings.iter().map(|setting| node.setting(setting)).collect::<Result<_>>()?;
        ensure!(before == after, "{settings:?} were {before:?} and are {after:?}");
        Ok(())
    });
}

#[test]
fn the_samples_in_the_docs_are_what_the_commands_print() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        let operator = Operator::at_the_gateway_of(&clusters.amber)?;
        let docs = include_str!("../../docs/cli.md");
        let mut samples = 0;
        for block in docs.split("```console\n").skip(1) {
            let block = block.split("```").next().context("the end of a sample")?;
            let (command, sample) = block.split_once('\n').context("a sample with a command")?;
            let command = command.strip_prefix("$ tombolo ").context("a sample that begins with '$ tombolo'")?;
            clusters.amber.eventually(PATIENCE, &format!("tombolo {command} prints what the docs say"), || {
                let (printed, _) = operator.types(command, GOOD)?;
                ensure!(normalised(&printed) == normalised(sample), "printed:\n{printed}in the docs:\n{sample}");
                Ok(())
            })?;
            samples += 1;
        }
        ensure!(samples >= 7, "docs/cli.md has only {samples} samples");
        Ok(())
    });
}

/// The words of a text by line, with what differs from run to run replaced: addresses, keys, times, versions, bytes.
fn normalised(text: &str) -> Vec<Vec<String>> {
    text.lines().map(|line| line.split_whitespace().map(normalised_word).collect()).collect()
}

fn normalised_word(word: &str) -> String {
    let bare = word.trim_matches([',', '(', ')']);
    let is_address = |text: &str| {
        let host = text.rsplit_once(':').map_or(text, |(host, _)| host.trim_matches(['[', ']']));
        text.parse::<IpAddr>().is_ok() || (host.parse::<IpAddr>().is_ok() && text.contains(':'))
    };
    let number = bare.trim_end_matches(|letter: char| letter.is_ascii_alphabetic() || letter == '%');
    let is_number = !number.is_empty() && number.parse::<f64>().is_ok();
    let unit = &bare[number.len()..];
    if bare.split(',').all(is_address) {
        "ADDRESS".into()
    } else if bare.starts_with("SHA256:") {
        "FINGERPRINT".into()
    } else if is_number && ["ms", "s", "m", "h"].contains(&unit) {
        "TIME".into()
    } else if is_number && (bare.contains('.') && unit == "%" || number.len() >= 3 && unit.is_empty()) {
        // A measured loss, and bytes; whole per cents are shares and stay.
        "NUMBER".into()
    } else if bare.starts_with('v') && bare.contains('.') && bare[1..].starts_with(|c: char| c.is_ascii_digit()) {
        "VERSION".into()
    } else {
        word.into()
    }
}

#[test]
fn every_metric_is_in_the_docs_and_every_metric_in_the_docs_is_there() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        let amber = &clusters.amber;
        amber.apply("own.yaml", &Service::http("shop", "own").manifest(&[&clusters.client]))?;
        // Somebody else's service without endpoints, and one in a namespace that nobody accepts.
        clusters.birch.apply("idle.yaml", &Service::http("shop", "idle").manifest(&[]))?;
        let system = Service::http("kube-system", "dns").manifest(&[&clusters.servers[0]]);
        clusters.birch.apply("system.yaml", &system)?;
        let gateway = amber.cluster().gateway()?;
        amber.eventually(PATIENCE, "the sparse metrics are there", || {
            for metric in ["tombolo_exports", "tombolo_import_unserved", "tombolo_sync_refused_items"] {
                ensure!(amber.metric(gateway, Part::Controller, metric, &[])? >= 1.0, "{metric} is not");
            }
            Ok(())
        })?;
        let operator = Operator { deployment: amber, node: gateway };
        let refused = ["! birch: ", "not in force: ", " NamespaceNotAccepted      run: tombolo refusals"];
        operator.waits_for("status", FOUND_BAD, &refused)?;

        let documented = documented()?;
        for part in Part::ALL {
            let socket = gateway.run_folder().join("tombolo").join(format!("{}.sock", part.name()));
            let (_, text) = surface::get(&socket, "/metrics", Duration::from_secs(5))?;
            let scraped = scraped(&text)?;
            let known =
                documented.get(part.name()).with_context(|| format!("docs/metrics.md lacks {}", part.name()))?;
            let unknown: Vec<_> = scraped.iter().filter(|name| !known.contains_key(*name)).collect();
            ensure!(unknown.is_empty(), "{}: {unknown:?} are not in docs/metrics.md", part.name());
            let absent: Vec<_> = known
                .iter()
                .filter(|(name, sparse)| !**sparse && !scraped.contains(*name))
                .map(|(name, _)| name)
                .collect();
            ensure!(absent.is_empty(), "{}: docs/metrics.md has {absent:?}, the part does not", part.name());
        }
        Ok(())
    });
}

/// By part, the metrics of docs/metrics.md and whether each is there only when something happened. Those of every part
/// are in each.
fn documented() -> Result<BTreeMap<String, BTreeMap<String, bool>>> {
    let mut parts = BTreeMap::<String, BTreeMap<String, bool>>::new();
    let mut part = String::new();
    for line in include_str!("../../docs/metrics.md").lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            part = heading.to_lowercase();
        }
        let Some(rest) = line.strip_prefix("| `tombolo_") else { continue };
        let name = rest.split(['`', '{']).next().context("a metric's name")?;
        let of_every_part = part == "every part";
        let those = Part::ALL.iter().map(|part| part.name()).filter(|name| of_every_part || part == *name);
        for part in those {
            let metrics = parts.entry(part.to_owned()).or_default();
            metrics.insert(format!("tombolo_{name}"), line.contains("only when"));
        }
    }
    Ok(parts)
}

/// The names of an exposition's families as a query writes them. Errors on one that breaks the conventions.
fn scraped(text: &str) -> Result<BTreeSet<String>> {
    let mut types = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').context("a type")?;
        types.insert(name.to_owned(), kind.to_owned());
    }
    let mut names = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_once('{').with_context(|| format!("a series without labels: {line}"))?;
        ensure!(rest.contains("local_cluster=\"amber\""), "without local_cluster: {line}");
        let family = ["_total", "_bucket", "_sum", "_count"].iter().find_map(|end| {
            let family = name.strip_suffix(end)?;
            types.contains_key(family).then_some(family)
        });
        let family = family.unwrap_or(name);
        let kind = types.get(family).with_context(|| format!("{name} has no type"))?;
        ensure!(name.starts_with("tombolo_"), "{name} is not ours");
        let abbreviated = name.split('_').any(|word| ["ms", "us", "sec", "secs", "kb", "mb"].contains(&word));
        ensure!(!abbreviated, "{name}: units are seconds and bytes");
        ensure!((kind == "counter") == name.ends_with("_total"), "{name} is a {kind}");
        names.insert(if kind == "counter" { name.to_owned() } else { family.to_owned() });
    }
    Ok(names)
}
