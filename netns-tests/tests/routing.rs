//! docs/routing.md, sentence by sentence: each time what `tombolo explain service` says and what connections show.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hickory_proto::rr::{RData, RecordType};
use netns_tests::deployment::Deployment;
use netns_tests::manifest::{LocalCluster, Service};
use netns_tests::pod::Pod;
use netns_tests::scenario::three_clusters::{PATIENCE, ThreeClusters};
use netns_tests::traffic::stream::Download;
use netns_tests::traffic::{dns, http, udp};
use netns_tests::world_test;

/// For one answered connection, on a machine that other tests share.
const LIMIT: Duration = Duration::from_secs(5);
/// Enough that a cluster with a quarter of the traffic is seen: 0.75^50 is 1 in 1.7 million.
const CONNECTIONS: usize = 50;
/// Shares of 200 connections are within 15 points of the weights but for 1 run in 45,000 (4.2 standard deviations).
const CONNECTIONS_FOR_SHARES: usize = 200;
const POINTS: f64 = 0.15;

/// Who answers, in percent of new connections.
type Shares<'a> = &'a [(&'a str, f64)];

/// One port as `tombolo explain service` has it, by cluster: verdict and reason.
type Reasons = BTreeMap<String, (String, String)>;

/// What the worker's `tombolo explain service` says of a port, once it is this: shares as asked for and as installed.
fn explained(clusters: &ThreeClusters, service: &str, port: u16, shares: Shares<'_>) -> Result<Reasons> {
    let worker = clusters.amber.cluster().worker()?;
    clusters.amber.eventually(PATIENCE, &format!("{service}:{port} is explained as {shares:?}"), || {
        let output = clusters.amber.tombolo(worker, &["explain", "service", service, "-o", "json"])?;
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).trim().to_owned())?;
        let ports = report["ports"].as_array().context("no ports")?;
        let found = ports.iter().find(|found| found["port"] == port).with_context(|| format!("no port: {report}"))?;
        let mut reasons = Reasons::new();
        for cluster in found["clusters"].as_array().context("no clusters")? {
            let text = |field: &str| cluster[field].as_str().unwrap_or_default().to_owned();
            let name = text("cluster");
            let wanted = shares.iter().find(|(cluster, _)| *cluster == name).map_or(0.0, |(_, percent)| *percent);
            for field in ["askedPercent", "installedPercent"] {
                let percent = cluster[field].as_f64().context("no percentage")?;
                // One slot of 256 is 0.4 percent.
                ensure!((percent - wanted).abs() < 1.0, "{name}: {field} {percent}, {wanted} expected: {found}");
            }
            reasons.insert(name, (text("verdict"), text("reason")));
        }
        Ok(reasons)
    })
}

/// That a service is explained with these shares and that connections of both families show them. Gives the reasons.
fn answered_by(clusters: &ThreeClusters, service: &str, port: u16, shares: Shares<'_>) -> Result<Reasons> {
    let reasons = explained(clusters, service, port, shares)?;
    let (namespace, name) = service.split_once('/').context("namespace/name")?;
    for address in clusters.amber.clusterset_addresses(namespace, name, PATIENCE)? {
        let target = SocketAddr::new(address, port);
        let count = if shares.len() > 1 { CONNECTIONS_FOR_SHARES } else { CONNECTIONS };
        let answered = |count| -> Result<http::Tally> {
            let tally = http::get_many(&clusters.client, target, count, LIMIT)?;
            ensure!(tally.failed == 0, "{target}: {:?}", tally.failures);
            for cluster in tally.clusters.keys() {
                ensure!(shares.iter().any(|(wanted, _)| wanted == cluster), "{target}: {cluster} answers {service}");
            }
            Ok(tally)
        };
        // The kernel is told a moment after it was decided; from then on there is no exception.
        clusters.amber.eventually(PATIENCE, &format!("{service} is answered by {shares:?}"), || answered(10))?;
        let tally = answered(count)?;
        for (cluster, percent) in shares {
            let got = tally.share(cluster);
            ensure!((got - percent / 100.0).abs() <= POINTS, "{target}: {cluster} got {got:.2} of {percent} percent");
        }
    }
    Ok(reasons)
}

/// That nobody answers and every connection, from the pod and from both hosts, is refused rather than left waiting.
fn refused_at_once(clusters: &ThreeClusters, service: &str, tcp: u16, udp: u16) -> Result<()> {
    let (namespace, name) = service.split_once('/').context("namespace/name")?;
    let mut hosts = vec![(*clusters.client).clone()];
    hosts.extend(clusters.amber.cluster().nodes().iter().map(|node| (**node).clone()));
    for address in clusters.amber.clusterset_addresses(namespace, name, PATIENCE)? {
        for host in &hosts {
            clusters.amber.eventually(PATIENCE, &format!("{address} refuses {}", host.name()), || {
                // Told within the limit, for a silent network would say "timed out" instead.
                let answer = http::get(host, SocketAddr::new(address, tcp), LIMIT);
                let error = answer.err().context("someone answers")?;
                ensure!(format!("{error:#}").contains("refused"), "{error:#}");
                let echoes = udp::echo(host, SocketAddr::new(address, udp), 1, 16, LIMIT)?;
                ensure!(echoes.answered == 0, "someone answers");
                // A packet refused where it was made fails the very call that sends it: "not permitted".
                let told = echoes.error.as_deref().unwrap_or_default();
                ensure!(told.contains("refused") || told.contains("not permitted"), "{echoes:?}");
                Ok(())
            })?;
        }
    }
    Ok(())
}

fn policy(service: &str, port: &str, rules: &str) -> String {
    format!(
        "apiVersion: tombolo.dev/v1alpha1\nkind: RoutingPolicy\nmetadata: {{name: {service}{port}, namespace: shop}}\nspec:\n  \
         targetRefs: [{{name: {service}{}}}]\n  {rules}\n",
        if port.is_empty() { String::new() } else { format!(", port: {port}") }
    )
}

/// The pods of `clusters.servers` in one cluster.
fn servers<'a>(clusters: &'a ThreeClusters, cluster: &str) -> Vec<&'a Pod> {
    clusters.servers.iter().filter(|pod| pod.node().cluster_name() == cluster).collect()
}

/// The manifest with these pods not ready.
fn unready(manifest: &str, pods: &[&str]) -> String {
    let line = |line: &str| {
        let is_theirs = pods.iter().any(|pod| line.contains(&format!("hostname: {pod},")));
        if is_theirs { line.replace("ready: true", "ready: false") } else { line.to_owned() }
    };
    manifest.lines().map(|text| line(text) + "\n").collect()
}

fn reason(reasons: &Reasons, cluster: &str) -> String {
    reasons.get(cluster).map(|(verdict, reason)| format!("{verdict} {reason}")).unwrap_or_default()
}

#[test]
fn the_first_tier_serves_the_next_one_while_it_has_no_ready_endpoint_and_it_again_afterwards() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        clusters.amber.apply(
            "policy.yaml",
            &policy("web", "", "tiers: [{clusters: [{cluster: birch}]}, {clusters: [{cluster: cedar}]}]"),
        )?;
        let reasons = answered_by(&clusters, "shop/web", 80, &[("birch", 100.0)])?;
        ensure!(reason(&reasons, "cedar") == "Standby HigherTierServes", "{reasons:?}");
        ensure!(reason(&reasons, "birch") == "Used Serving", "{reasons:?}");

        let manifest = Service::http("shop", "web").manifest(&servers(&clusters, "birch"));
        clusters.birch.apply("web.yaml", &unready(&manifest, &["web-1"]))?;
        let reasons = answered_by(&clusters, "shop/web", 80, &[("cedar", 100.0)])?;
        ensure!(reason(&reasons, "birch") == "Excluded NoReadyEndpoints", "{reasons:?}");

        clusters.birch.apply("web.yaml", &manifest)?;
        answered_by(&clusters, "shop/web", 80, &[("birch", 100.0)])?;

        clusters.birch.apply("web.yaml", &Service::http("shop", "web").manifest(&[]))?;
        let reasons = answered_by(&clusters, "shop/web", 80, &[("cedar", 100.0)])?;
        ensure!(reason(&reasons, "birch") == "Excluded NoEndpoints", "{reasons:?}");
        Ok(())
    });
}

#[test]
fn a_tier_below_its_number_or_percentage_of_ready_endpoints_spills_the_missing_part() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        let spill = |below: &str| {
            let tiers = format!(
                "tiers: [{{clusters: [{{cluster: cedar}}], spillBelow: {{{below}}}}}, {{clusters: [{{cluster: birch}}]}}]"
            );
            clusters.amber.apply("policy.yaml", &policy("web", "", &tiers))
        };
        // Two of cedar's two endpoints are ready: half of the four, all of the percentage.
        spill("ready: 4")?;
        let reasons = answered_by(&clusters, "shop/web", 80, &[("birch", 50.0), ("cedar", 50.0)])?;
        ensure!(reason(&reasons, "birch") == "Used Spill", "{reasons:?}");
        spill("percent: 80")?;
        answered_by(&clusters, "shop/web", 80, &[("cedar", 100.0)])?;
        let manifest = Service::http("shop", "web").manifest(&servers(&clusters, "cedar"));
        clusters.cedar.apply("web.yaml", &unready(&manifest, &["web-2"]))?;
        // 80 percent of two, rounded up, are two; one is ready.
        answered_by(&clusters, "shop/web", 80, &[("birch", 50.0), ("cedar", 50.0)])?;
        clusters.cedar.apply("web.yaml", &manifest)?;
        answered_by(&clusters, "shop/web", 80, &[("cedar", 100.0)])?;
        Ok(())
    });
}

#[test]
fn clusters_are_chosen_by_their_own_labels_and_weights_hold_inside_a_tier() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        // Labels come to running clusters, as an operator gives them.
        for (deployment, region) in [(&clusters.birch, "eu"), (&clusters.cedar, "us")] {
            let mut local = LocalCluster::of(deployment.cluster());
            local.labels = vec![("region".into(), region.into())];
            deployment.apply("local.yaml", &local.to_string())?;
        }
        let weights =
            "tiers: [{clusters: [{matchLabels: {region: eu}, weight: 3}, {matchLabels: {region: us}, weight: 1}]}]";
        clusters.amber.apply("policy.yaml", &policy("web", "", weights))?;
        answered_by(&clusters, "shop/web", 80, &[("birch", 75.0), ("cedar", 25.0)])?;

        clusters
            .amber
            .apply("policy.yaml", &policy("web", "", "tiers: [{clusters: [{matchLabels: {region: us}}]}]"))?;
        let reasons = answered_by(&clusters, "shop/web", 80, &[("cedar", 100.0)])?;
        ensure!(reason(&reasons, "birch") == "Excluded NotInPolicy", "{reasons:?}");

        // The label moves, and the traffic after it.
        for (deployment, region) in [(&clusters.birch, "us"), (&clusters.cedar, "eu")] {
            let mut local = LocalCluster::of(deployment.cluster());
            local.labels = vec![("region".into(), region.into())];
            deployment.apply("local.yaml", &local.to_string())?;
        }
        answered_by(&clusters, "shop/web", 80, &[("birch", 100.0)])?;
        Ok(())
    });
}

/// The one cluster that answers `shop/web` because it is nearest, as explained; the other one stands by.
fn nearest(clusters: &ThreeClusters) -> Result<String> {
    let worker = clusters.amber.cluster().worker()?;
    let output = clusters.amber.tombolo(worker, &["explain", "service", "shop/web", "-o", "json"])?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let found = report["ports"][0]["clusters"].as_array().context("no clusters")?;
    let used: Vec<&str> =
        found.iter().filter(|it| it["askedPercent"] == 100.0).filter_map(|it| it["cluster"].as_str()).collect();
    let farther = found.iter().filter(|it| it["verdict"] == "Standby" && it["reason"] == "Farther").count();
    let [one] = used.as_slice() else { bail!("{used:?} are used: {report}") };
    ensure!(farther == 1, "{report}");
    Ok((*one).to_owned())
}

#[test]
fn local_endpoints_come_first_without_a_policy_and_nearest_takes_one_cluster_alone() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        // Without a policy others share by their ready endpoints.
        answered_by(&clusters, "shop/web", 80, &[("birch", 33.3), ("cedar", 66.7)])?;

        clusters.amber.apply(
            "policy.yaml",
            &policy("web", "", "tiers: [{clusters: [{cluster: birch}, {cluster: cedar}], share: Nearest}]"),
        )?;
        // Which of both it is was measured, and on a busy machine it may change: then it is looked at again.
        clusters.amber.eventually(PATIENCE, "one cluster alone answers as the nearest", || {
            let before = nearest(&clusters)?;
            for target in clusters.web()? {
                let tally = http::get_many(&clusters.client, target, 30, LIMIT)?;
                ensure!(tally.failed == 0 && tally.share(&before) == 1.0, "{before} is nearest: {tally:?}");
            }
            ensure!(nearest(&clusters)? == before, "another cluster became the nearest");
            Ok(())
        })?;

        let own = clusters.amber.cluster().worker()?.pod("web-3")?;
        own.serve_http()?;
        clusters.amber.apply("web.yaml", &Service::http("shop", "web").manifest(&[&own]))?;
        clusters.amber.remove("policy.yaml")?;
        let reasons = answered_by(&clusters, "shop/web", 80, &[("amber", 100.0)])?;
        ensure!(reason(&reasons, "birch") == "Standby HigherTierServes", "{reasons:?}");

        // The local cluster is nearest of all, and may be one among others.
        clusters
            .amber
            .apply("policy.yaml", &policy("web", "", "tiers: [{clusters: [{matchLabels: {}}], share: Nearest}]"))?;
        let reasons = answered_by(&clusters, "shop/web", 80, &[("amber", 100.0)])?;
        ensure!(reason(&reasons, "cedar") == "Standby Farther", "{reasons:?}");
        clusters.amber.apply(
            "policy.yaml",
            &policy("web", "", "tiers: [{clusters: [{local: true, weight: 3}, {cluster: birch, weight: 1}]}]"),
        )?;
        answered_by(&clusters, "shop/web", 80, &[("amber", 75.0), ("birch", 25.0)])?;
        Ok(())
    });
}

#[test]
fn the_platforms_override_beats_the_owners_policy_and_its_default_loses_to_it() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        let platform = |what: &str, cluster: &str| {
            format!(
                "apiVersion: tombolo.dev/v1alpha1\nkind: ClusterRoutingPolicy\nmetadata: {{name: {what}}}\nspec:\n  \
                 namespaces: [shop]\n  {what}: {{tiers: [{{clusters: [{{cluster: {cluster}}}]}}]}}\n"
            )
        };
        clusters.amber.apply("defaults.yaml", &platform("defaults", "cedar"))?;
        answered_by(&clusters, "shop/web", 80, &[("cedar", 100.0)])?;
        clusters.amber.apply("policy.yaml", &policy("web", "", "tiers: [{clusters: [{cluster: birch}]}]"))?;
        answered_by(&clusters, "shop/web", 80, &[("birch", 100.0)])?;
        clusters.amber.apply("overrides.yaml", &platform("overrides", "cedar"))?;
        answered_by(&clusters, "shop/web", 80, &[("cedar", 100.0)])?;
        clusters.amber.remove("overrides.yaml")?;
        answered_by(&clusters, "shop/web", 80, &[("birch", 100.0)])?;
        clusters.amber.remove("policy.yaml")?;
        answered_by(&clusters, "shop/web", 80, &[("cedar", 100.0)])?;
        clusters.amber.remove("defaults.yaml")?;
        answered_by(&clusters, "shop/web", 80, &[("birch", 33.3), ("cedar", 66.7)])?;
        Ok(())
    });
}

#[test]
fn every_port_is_decided_for_itself_and_goes_only_to_clusters_that_have_it() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        let plain = Service::http("shop", "two-ports");
        let with_admin = plain.clone().with_port("admin", "TCP", 81, 80);
        clusters.birch.apply("two-ports.yaml", &with_admin.manifest(&servers(&clusters, "birch")))?;
        clusters.cedar.apply("two-ports.yaml", &plain.manifest(&servers(&clusters, "cedar")))?;
        answered_by(&clusters, "shop/two-ports", 80, &[("birch", 33.3), ("cedar", 66.7)])?;
        let reasons = answered_by(&clusters, "shop/two-ports", 81, &[("birch", 100.0)])?;
        ensure!(reason(&reasons, "cedar") == "Excluded NoEndpoints", "{reasons:?}");

        clusters.amber.apply("http.yaml", &policy("two-ports", "http", "tiers: [{clusters: [{cluster: cedar}]}]"))?;
        answered_by(&clusters, "shop/two-ports", 80, &[("cedar", 100.0)])?;
        answered_by(&clusters, "shop/two-ports", 81, &[("birch", 100.0)])?;

        // A policy for the whole service is for the ports that none names.
        clusters
            .amber
            .apply("all.yaml", &policy("two-ports", "", "tiers: [{clusters: [{local: true}, {cluster: birch}]}]"))?;
        answered_by(&clusters, "shop/two-ports", 80, &[("cedar", 100.0)])?;
        answered_by(&clusters, "shop/two-ports", 81, &[("birch", 100.0)])?;
        clusters.amber.remove("http.yaml")?;
        answered_by(&clusters, "shop/two-ports", 80, &[("birch", 100.0)])?;
        Ok(())
    });
}

#[test]
fn a_service_that_no_tier_can_serve_refuses_at_once_and_goes_nowhere_else() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        let both = Service::http("shop", "both").with_port("echo", "UDP", 7777, 7777);
        for (deployment, name) in [(&clusters.birch, "birch"), (&clusters.cedar, "cedar")] {
            for pod in servers(&clusters, name) {
                pod.serve_udp_echo(7777)?;
            }
            deployment.apply("both.yaml", &both.manifest(&servers(&clusters, name)))?;
        }
        answered_by(&clusters, "shop/both", 80, &[("birch", 33.3), ("cedar", 66.7)])?;
        clusters.amber.apply(
            "policy.yaml",
            &policy("both", "", "tiers: [{clusters: [{cluster: birch, weight: 0}, {cluster: elm}]}]"),
        )?;
        let reasons = explained(&clusters, "shop/both", 80, &[])?;
        ensure!(reason(&reasons, "birch") == "Excluded WeightZero", "{reasons:?}");
        ensure!(reason(&reasons, "cedar") == "Excluded NotInPolicy", "{reasons:?}");
        refused_at_once(&clusters, "shop/both", 80, 7777)?;
        clusters.amber.remove("policy.yaml")?;
        answered_by(&clusters, "shop/both", 80, &[("birch", 33.3), ("cedar", 66.7)])?;
        Ok(())
    });
}

/// Sets what amber's operator wants of birch.
fn set_birch(amber: &Deployment, state: &str) -> Result<()> {
    let manifest = std::fs::read_to_string(amber.manifests().join("peer-birch.yaml"))?;
    let kept: String =
        manifest.lines().filter(|line| !line.starts_with("  state:")).map(|line| format!("{line}\n")).collect();
    amber.apply("peer-birch.yaml", &format!("{kept}  state: {state}\n"))
}

#[test]
fn a_drained_peer_keeps_its_connections_without_new_ones_and_a_blocked_peer_has_none() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        let amber = &clusters.amber;
        let birch = servers(&clusters, "birch");
        birch[0].serve_stream(90)?;
        let feed = Service { ports: vec![("feed".into(), "TCP", 90, 90)], ..Service::http("shop", "feed") };
        clusters.birch.apply("feed.yaml", &feed.manifest(&birch))?;
        let database = Service::http("shop", "database").headless();
        clusters.birch.apply("database.yaml", &database.manifest(&birch))?;
        clusters.cedar.apply("database.yaml", &database.manifest(&servers(&clusters, "cedar")))?;
        let name = "database.shop.svc.clusterset.local.";
        names_answer(&clusters, name, &["birch", "cedar"])?;

        explained(&clusters, "shop/feed", 90, &[("birch", 100.0)])?;
        let target = SocketAddr::new(amber.clusterset_addresses("shop", "feed", PATIENCE)?[0], 90);
        let download =
            amber.eventually(PATIENCE, "a download starts", || Download::start(&clusters.client, target, LIMIT))?;
        download.wait_for_more(PATIENCE)?;

        set_birch(amber, "Drained")?;
        let reasons = answered_by(&clusters, "shop/web", 80, &[("cedar", 100.0)])?;
        ensure!(reason(&reasons, "birch") == "Excluded Drained", "{reasons:?}");
        names_answer(&clusters, name, &["cedar"])?;
        download.wait_for_more(PATIENCE)?;
        ensure!(Download::start(&clusters.client, target, LIMIT).is_err(), "a drained peer got a new connection");
        ensure!(download.so_far().ended.is_none(), "{:?}", download.so_far());

        set_birch(amber, "Active")?;
        names_answer(&clusters, name, &["birch", "cedar"])?;
        answered_by(&clusters, "shop/web", 80, &[("birch", 33.3), ("cedar", 66.7)])?;

        set_birch(amber, "Blocked")?;
        let reasons = answered_by(&clusters, "shop/web", 80, &[("cedar", 100.0)])?;
        let birchs = reason(&reasons, "birch");
        ensure!(birchs == "Excluded Blocked" || birchs.is_empty(), "{reasons:?}");
        names_answer(&clusters, name, &["cedar"])?;
        for address in birch[0].addresses().with_port(80) {
            let limit = Duration::from_millis(300);
            ensure!(http::get(&clusters.client, address, limit).is_err(), "a blocked peer's pod answers");
        }
        set_birch(amber, "Active")?;
        answered_by(&clusters, "shop/web", 80, &[("birch", 33.3), ("cedar", 66.7)])?;
        names_answer(&clusters, name, &["birch", "cedar"])
    });
}

/// That a headless name answers with the pods of these clusters, in both families, soon.
fn names_answer(clusters: &ThreeClusters, name: &str, of: &[&str]) -> Result<()> {
    let pods = clusters.servers.iter().filter(|pod| of.contains(&pod.node().cluster_name()));
    let wanted: BTreeSet<IpAddr> = pods.flat_map(|pod| pod.addresses().both()).collect();
    let [server, _] = clusters.amber.dns()?;
    clusters.amber.eventually(PATIENCE, &format!("{name} answers with the pods of {of:?}"), || {
        let mut got = BTreeSet::new();
        for kind in [RecordType::A, RecordType::AAAA] {
            let answer = dns::query(&clusters.client, server, name, kind, dns::Transport::Udp, LIMIT)?;
            got.extend(answer.answers.iter().filter_map(|record| match &record.data {
                RData::A(address) => Some(IpAddr::V4(address.0)),
                RData::AAAA(address) => Some(IpAddr::V6(address.0)),
                _ => None,
            }));
        }
        ensure!(got == wanted, "answered {got:?}, expected {wanted:?}");
        Ok(())
    })
}

#[test]
fn a_headless_answer_has_every_endpoint_unless_its_policy_is_for_headless_answers_too() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        let database = Service::http("shop", "database").headless();
        for (deployment, name) in [(&clusters.birch, "birch"), (&clusters.cedar, "cedar")] {
            deployment.apply("database.yaml", &database.manifest(&servers(&clusters, name)))?;
        }
        let name = "database.shop.svc.clusterset.local.";
        names_answer(&clusters, name, &["birch", "cedar"])?;
        let tiers = "tiers: [{clusters: [{cluster: birch}]}, {clusters: [{cluster: cedar}]}]";
        clusters.amber.apply("policy.yaml", &policy("database", "", &format!("{tiers}\n  headless: true")))?;
        names_answer(&clusters, name, &["birch"])?;
        let manifest = database.manifest(&servers(&clusters, "birch"));
        clusters.birch.apply("database.yaml", &unready(&manifest, &["web-1"]))?;
        names_answer(&clusters, name, &["cedar"])?;
        clusters.birch.apply("database.yaml", &manifest)?;
        names_answer(&clusters, name, &["birch"])?;
        // The same policy without the word leaves the answer whole.
        clusters.amber.apply("policy.yaml", &policy("database", "", tiers))?;
        names_answer(&clusters, name, &["birch", "cedar"])
    });
}
