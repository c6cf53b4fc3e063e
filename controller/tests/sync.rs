//! Two controllers, each over a folder of manifests, joined by nothing but a splice: what one exports the other imports.

mod clusters;

use api::{ClusterPeer, ServiceExport, ServiceImport};
use clusters::{Cluster, Splice, eventually};
use tokio::io::AsyncWriteExt;

async fn pair() -> (Cluster, Cluster, [Splice; 2]) {
    let (amber, birch) = (Cluster::start("amber", 1).await, Cluster::start("birch", 2).await);
    amber.trust(&birch).await;
    birch.trust(&amber).await;
    let splices = [Splice::new(&amber, &birch), Splice::new(&birch, &amber)];
    (amber, birch, splices)
}

fn condition(conditions: &[api::kubernetes::Condition], kind: &str) -> Option<(String, String)> {
    let found = conditions.iter().find(|condition| condition.type_ == kind)?;
    Some((found.status.clone(), found.reason.clone()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_exported_in_one_cluster_is_imported_in_the_other_and_gone_when_it_is_taken_back() {
    let (amber, birch, _splices) = pair().await;
    birch.export(&["10.2.0.1"]);
    amber.until_imported(&[("birch", "10.2.0.1", true)]).await;
    let import = amber.until::<ServiceImport, _>(Some("shop"), "web", |import| {
        import.filter(|import| import.status.as_ref().is_some_and(|status| !status.clusters.is_empty()))
    });
    let import = import.await;
    assert!(import.spec.ips[0].starts_with("10.200."), "{import:?}");
    // The exporting cluster imports it as well (IM-1).
    birch.until_imported(&[("birch", "10.2.0.1", true)]).await;

    birch.endpoints(&["10.2.0.1", "10.2.0.2"]);
    amber.until_imported(&[("birch", "10.2.0.1", true), ("birch", "10.2.0.2", true)]).await;

    birch.remove("export.yaml");
    amber.until::<ServiceImport, _>(Some("shop"), "web", |import| import.is_none().then_some(())).await;
    amber.until_imported(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_clusters_export_one_service_and_see_the_same_and_the_conflict_on_both_sides() {
    let (amber, birch, _splices) = pair().await;
    amber.export(&["10.1.0.1"]);
    birch.export(&["10.2.0.1"]);
    let both = [("amber", "10.1.0.1", true), ("birch", "10.2.0.1", true)];
    amber.until_imported(&both).await;
    birch.until_imported(&both).await;
    birch.put(
        "export.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: { name: web, namespace: shop }\n\
         spec: { ipFamilies: [IPv4], ports: [{ name: http, port: 80, protocol: TCP }, { name: admin, port: 81, protocol: TCP }] }\n\
         ---\napiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: { name: web, namespace: shop }\n",
    );
    for cluster in [&amber, &birch] {
        let conflict = |export: Option<ServiceExport>| {
            let found = condition(&export?.status?.conditions, "Conflict")?;
            (found == ("True".to_owned(), "PortConflict".to_owned())).then_some(())
        };
        cluster.until(Some("shop"), "web", conflict).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_restarted_while_its_peers_are_away_keeps_what_they_said_and_goes_on_by_deltas() {
    let (mut amber, birch, splices) = pair().await;
    birch.export(&["10.2.0.1"]);
    amber.until_imported(&[("birch", "10.2.0.1", true)]).await;
    let address = amber.until::<ServiceImport, _>(Some("shop"), "web", |import| Some(import?.spec.ips)).await;
    drop(splices);
    amber.stop().await;
    amber.resume().await;
    let ready = || async { amber.surface().readiness().is_ready().then_some(()) };
    eventually("amber ready", ready, || amber.surface().answer("status").unwrap_or_default()).await;
    // Nothing of birch was lost, and nothing was written anew.
    amber.until_imported(&[("birch", "10.2.0.1", true)]).await;
    assert_eq!(amber.until::<ServiceImport, _>(Some("shop"), "web", |import| Some(import?.spec.ips)).await, address);

    birch.endpoints(&["10.2.0.9"]);
    let _splice = Splice::new(&amber, &birch);
    amber.until_imported(&[("birch", "10.2.0.9", true)]).await;
    let metrics = amber.surface().metrics();
    assert!(!metrics.contains("tombolo_sync_resyncs_total{"), "a snapshot was taken where deltas would do:\n{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_not_trusted_hears_nothing_and_is_counted() {
    let (amber, birch) = (Cluster::start("amber", 1).await, Cluster::start("birch", 2).await);
    amber.trust(&birch).await;
    birch.export(&["10.2.0.1"]);
    let _splice = Splice::new(&amber, &birch);
    let refused = || async {
        let refusals = birch.surface().answer("refusals")?;
        refusals.as_array()?.iter().any(|refusal| refusal["reason"] == "UnknownIdentity").then_some(())
    };
    eventually("a refusal by name", refused, || birch.surface().answer("refusals").unwrap_or_default()).await;
    assert!(amber.imported().await.is_empty());
    // Trusted later, it is heard at once.
    birch.trust(&amber).await;
    amber.until_imported(&[("birch", "10.2.0.1", true)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_at_the_end_of_the_way_is_refused_by_its_key() {
    let (amber, birch, cedar) =
        (Cluster::start("amber", 1).await, Cluster::start("birch", 2).await, Cluster::start("cedar", 3).await);
    amber.trust(&birch).await;
    cedar.trust(&amber).await;
    cedar.export(&["10.3.0.1"]);
    // A gateway is led to cedar where it was to reach birch.
    let _splice = Splice::to(amber.socket(), "birch", cedar.socket());
    let refused = || async {
        let refusals = amber.surface().answer("refusals")?;
        let named = |refusal: &serde_json::Value| refusal["reason"] == "UnknownIdentity" && refusal["peer"] == "birch";
        refusals.as_array()?.iter().any(named).then_some(())
    };
    eventually("a refusal by name", refused, || amber.surface().answer("refusals").unwrap_or_default()).await;
    assert!(amber.imported().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_blocked_loses_its_imports_and_its_conversation_and_gets_both_back() {
    let (amber, birch, _splices) = pair().await;
    birch.export(&["10.2.0.1"]);
    amber.until_imported(&[("birch", "10.2.0.1", true)]).await;
    let manifest = std::fs::read_to_string(amber.path("manifests/peer-birch.yaml")).unwrap();
    amber.put("peer-birch.yaml", &manifest.replace("spec:\n", "spec:\n  state: Blocked\n"));
    amber.until_imported(&[]).await;
    let blocked = |peer: Option<ClusterPeer>| {
        let found = condition(&peer?.status?.conditions, "Connected")?;
        (found.1 == "Blocked").then_some(())
    };
    amber.until(None, "birch", blocked).await;
    amber.put("peer-birch.yaml", &manifest);
    amber.until_imported(&[("birch", "10.2.0.1", true)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_strangers_send_is_refused_by_name_and_peers_are_served_on() {
    let (amber, birch, _splices) = pair().await;
    let words: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"TOMBOLO IMPORT nobody\n",
        b"TOMBOLO IMPORT ../../etc\n",
        &[0x16, 3, 1, 255, 255],
        &[0; 300],
    ];
    for word in words {
        let mut stream = tokio::net::UnixStream::connect(amber.socket()).await.unwrap();
        // It may hang up before all is sent.
        let _ = stream.write_all(word).await;
        let _ = stream.shutdown().await;
        let mut rest = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await;
    }
    let refused = || async {
        let refusals = amber.surface().answer("refusals")?.to_string();
        ["UnknownProtocol", "UnknownPeer"].iter().all(|name| refusals.contains(name)).then_some(())
    };
    eventually("refusals by name", refused, || amber.surface().answer("refusals").unwrap_or_default()).await;
    birch.export(&["10.2.0.1"]);
    amber.until_imported(&[("birch", "10.2.0.1", true)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_one_way_to_a_peer_breaks_another_one_is_used_at_once() {
    let (amber, birch, splices) = pair().await;
    let second = Splice::new(&amber, &birch);
    birch.export(&["10.2.0.1"]);
    amber.until_imported(&[("birch", "10.2.0.1", true)]).await;
    drop(splices);
    birch.endpoints(&["10.2.0.7"]);
    amber.until_imported(&[("birch", "10.2.0.7", true)]).await;
    drop(second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuilt_cluster_learns_from_its_peers_how_old_its_exports_are_and_goes_on_winning() {
    let (amber, mut birch, _splices) = pair().await;
    birch.export(&["10.2.0.1"]);
    amber.until_imported(&[("birch", "10.2.0.1", true)]).await;
    let exported = |export: Option<ServiceExport>| Some(export?.metadata.creation_timestamp?.0.as_second());
    let first = birch.until::<ServiceExport, _>(Some("shop"), "web", exported).await;
    // The times of objects have whole seconds, and amber's is to be a later one.
    let later = || async { (jiff::Timestamp::now().as_second() > first).then_some(()) };
    eventually("another second", later, || serde_json::Value::Null).await;
    amber.export(&["10.1.0.1"]);
    let oldest_is_birch = |import: Option<ServiceImport>| {
        let clusters: Vec<String> = import?.status?.clusters.into_iter().map(|exporter| exporter.cluster).collect();
        (clusters == ["birch", "amber"]).then_some(())
    };
    birch.until(Some("shop"), "web", oldest_is_birch).await;

    birch.stop().await;
    std::fs::remove_dir_all(birch.path("objects")).unwrap();
    let kept = std::fs::read(birch.path("state/identity.key")).unwrap();
    std::fs::remove_dir_all(birch.path("state")).unwrap();
    std::fs::create_dir(birch.path("state")).unwrap();
    std::fs::write(birch.path("state/identity.key"), kept).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(birch.path("state/identity.key"), mode).unwrap();
    birch.resume().await;
    assert!(birch.until::<ServiceExport, _>(Some("shop"), "web", exported).await > first, "made anew");
    birch.until(Some("shop"), "web", oldest_is_birch).await;
    amber.until(Some("shop"), "web", oldest_is_birch).await;

    // It knows by itself from then on.
    birch.stop().await;
    drop(_splices);
    birch.resume().await;
    birch.until(Some("shop"), "web", oldest_is_birch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_from_a_change_in_a_peer_to_its_effect_here_is_measured() {
    let (amber, birch, _splices) = pair().await;
    birch.export(&["10.2.0.1"]);
    amber.until_imported(&[("birch", "10.2.0.1", true)]).await;
    birch.endpoints(&["10.2.0.2"]);
    amber.until_imported(&[("birch", "10.2.0.2", true)]).await;
    let measured = || async {
        let metrics = amber.surface().metrics();
        let count = metrics.lines().find(|line| line.starts_with("tombolo_sync_delay_seconds_count{"))?;
        (count.contains("peer=\"birch\"") && !count.ends_with(" 0")).then_some(())
    };
    eventually("a measured delay", measured, || amber.surface().metrics().into()).await;
}
