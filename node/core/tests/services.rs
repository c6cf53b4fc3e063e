//! Clusterset addresses in the kernel, as promises.

mod world;

use api::ClusterId;
use api::cluster_peer::PeerState;
use api::health::Reachability;
use api::kubernetes::EndpointSlice;
use api::member_record::MemberState;
use api::report::MoveShare;
use kernel_core::{Affinity, Backend, Change, Frontend, Protocol};
use node_core::whatif::Supposed;
use node_core::{Input, NodeCore, ObjectChange};
use world::*;

fn web() -> Frontend {
    Frontend { address: "10.201.0.1".parse().unwrap(), protocol: Protocol::Tcp, port: 80 }
}

fn slots(core: &NodeCore) -> Vec<String> {
    let service = core.wanted().services[&web()].clone();
    service.slots().iter().map(|slot| format!("{}:{}", slot.address, slot.port)).collect()
}

fn applied(slice: EndpointSlice) -> Vec<Input> {
    vec![Input::EndpointSlices(ObjectChange::Applied(slice))]
}

#[test]
fn a_clusterset_address_is_given_to_the_ready_endpoints_of_healthy_clusters() {
    assert_eq!(slots(&host("worker")), ["10.2.1.5:8080", "10.2.1.6:8080", "10.3.1.5:8080"]);
}

#[test]
fn local_endpoints_come_first_and_are_also_clients_of_themselves() {
    let mut core = host("worker");
    after(&mut core, at(20), applied(imported("web", "amber", &[("10.1.2.7", true, Some("worker"))])));
    assert_eq!(slots(&core), ["10.1.2.7:8080"]);
    assert_eq!(core.wanted().sets.hairpin, ["10.1.2.7".parse().unwrap()].into());
}

#[test]
fn a_node_of_the_same_name_in_another_cluster_is_not_this_host() {
    let mut core = host("worker");
    after(&mut core, at(20), applied(imported("web", "birch", &[("10.2.1.5", true, Some("worker"))])));
    assert!(core.wanted().sets.hairpin.is_empty());
}

#[test]
fn endpoints_of_a_dead_peer_leave_at_once_and_come_back_with_it() {
    let mut core = host("worker");
    let down = report(0, &[("birch", Reachability::Down), ("cedar", Reachability::Up)]);
    let (_, changes) = after(&mut core, at(20), vec![Input::Report(down)]);
    assert_eq!(slots(&core), ["10.3.1.5:8080"]);
    assert!(changes.iter().any(|change| matches!(change, Change::SetService { .. })));
    let up = report(0, &[("birch", Reachability::Up), ("cedar", Reachability::Up)]);
    after(&mut core, at(120), vec![Input::Report(up)]);
    assert_eq!(slots(&core).len(), 3);
}

#[test]
fn a_service_without_an_endpoint_refuses_connections_and_does_not_vanish() {
    let mut core = host("worker");
    for cluster in ["birch", "cedar"] {
        after(&mut core, at(20), applied(imported("web", cluster, &[])));
    }
    assert!(slots(&core).is_empty());
}

#[test]
fn only_slices_with_a_port_of_that_name_serve_it() {
    let mut core = host("worker");
    let mut other = imported("web", "birch", &[("10.2.1.5", true, None)]);
    other.ports.as_mut().unwrap()[0].name = Some("admin".into());
    after(&mut core, at(20), applied(other));
    assert_eq!(slots(&core), ["10.3.1.5:8080"]);
}

#[test]
fn client_affinity_fills_the_whole_table_by_the_clients_hash() {
    let mut core = host("worker");
    let mut sticky = import("web", "10.201.0.1");
    sticky.spec.session_affinity = Some("ClientIP".into());
    after(&mut core, at(20), vec![Input::ServiceImports(ObjectChange::Applied(sticky))]);
    let service = core.wanted().services[&web()].clone();
    assert_eq!((service.affinity(), service.slots().len()), (Affinity::ClientAddress, 256));
}

#[test]
fn what_is_wrong_in_an_object_is_named_and_the_rest_of_it_serves() {
    let mut core = host("worker");
    let mut bad = imported("web", "birch", &[("10.2.1.5", true, None), ("nonsense", true, None)]);
    bad.ports.as_mut().unwrap().push(api::kubernetes::EndpointPort { port: Some(70_000), ..Default::default() });
    after(&mut core, at(20), applied(bad));
    assert_eq!(slots(&core), ["10.2.1.5:8080", "10.3.1.5:8080"]);
    let mut names: Vec<&str> = core.problems().iter().map(|(_, problem)| problem.name()).collect();
    names.sort_unstable();
    assert_eq!(names, ["BadAddress", "BadPort"]);
}

#[test]
fn two_services_with_one_address_do_not_mix_and_the_second_takes_over_when_the_first_goes() {
    let mut core = host("worker");
    let inputs = vec![
        Input::ServiceImports(ObjectChange::Applied(import("zeta", "10.201.0.1"))),
        Input::EndpointSlices(ObjectChange::Applied(imported("zeta", "birch", &[("10.2.9.9", true, None)]))),
    ];
    after(&mut core, at(20), inputs);
    assert_eq!(slots(&core).len(), 3);
    assert_eq!(core.problems().iter().next().unwrap().1.name(), "AddressTaken");
    after(&mut core, at(30), vec![Input::ServiceImports(ObjectChange::Deleted(import("web", "10.201.0.1")))]);
    assert_eq!(slots(&core), ["10.2.9.9:8080"]);
}

#[test]
fn explain_says_what_is_asked_and_what_is_installed() {
    let mut core = host("worker");
    let down = report(0, &[("birch", Reachability::Down), ("cedar", Reachability::Up)]);
    after(&mut core, at(3_000), vec![Input::Report(down)]);
    let report = core.explain("shop", "web", at(3_000)).unwrap();
    let clusters = &report.ports[0].clusters;
    let seen: Vec<_> = clusters.iter().map(|c| (c.cluster.as_str(), c.reason.as_str(), c.installed_percent)).collect();
    assert_eq!(seen, [("amber", "NoEndpoints", 0.0), ("birch", "SilentPeer", 0.0), ("cedar", "Serving", 100.0)]);
    assert_eq!(report.ports[0].policy, "local first");
    assert!(core.explain("shop", "none", at(3_000)).is_none());
}

#[test]
fn one_change_among_ten_thousand_services_touches_one() {
    let mut core = host("worker");
    let address = |number: usize| format!("10.201.{}.{}", number / 250, number % 250 + 2);
    let endpoints = |ready| [("10.2.1.5", true, None), ("10.2.1.6", ready, None), ("10.2.1.7", true, None)];
    for number in 0..10_000 {
        let name = format!("s{number}");
        core.take(Input::ServiceImports(ObjectChange::Applied(import(&name, &address(number)))), at(20));
        core.take(Input::EndpointSlices(ObjectChange::Applied(imported(&name, "birch", &endpoints(true)))), at(20));
    }
    assert_eq!(core.delta(at(20)).services_touched, 10_000);
    let (delta, changes) = after(&mut core, at(30), applied(imported("s77", "birch", &endpoints(false))));
    assert_eq!(delta.services_touched, 1);
    assert_eq!((delta.before.services.len(), delta.after.services.len(), changes.len()), (1, 1, 1));
    let (delta, changes) = after(&mut core, at(40), applied(imported("s77", "birch", &endpoints(false))));
    assert!(delta.is_empty() && changes.is_empty() && delta.services_touched == 0);
}

#[test]
fn traffic_that_goes_elsewhere_is_told_once_for_both_families_with_what_caused_it() {
    let mut core = host("worker");
    let told = |core: &mut NodeCore, time, inputs: Vec<Input>| -> Vec<[String; 4]> {
        let (delta, _) = after(core, at(time), inputs);
        delta.shares.into_iter().map(|change| [change.service, change.before, change.after, change.reason]).collect()
    };
    let words = |words: [&str; 4]| words.map(str::to_owned);
    let (both, cedar) = ("67% birch, 33% cedar", "100% cedar");
    let down = || Input::Report(report(0, &[("birch", Reachability::Down), ("cedar", Reachability::Up)]));
    assert_eq!(told(&mut core, 20, vec![down()]), [words(["shop/web http", both, cedar, "birch SilentPeer"])]);
    assert!(told(&mut core, 30, vec![down()]).is_empty(), "nothing changed");
    let up = Input::Report(report(0, &[("birch", Reachability::Up), ("cedar", Reachability::Up)]));
    assert_eq!(told(&mut core, 120, vec![up]), [words(["shop/web http", cedar, both, "birch Serving"])]);
    let fewer = applied(imported("web", "birch", &[("10.2.1.5", true, None)]));
    assert_eq!(told(&mut core, 130, fewer), [words(["shop/web http", both, "50% birch, 50% cedar", "Endpoints"])]);
    let none = applied(imported("web", "birch", &[("10.2.1.5", false, None)]));
    assert_eq!(
        told(&mut core, 140, none),
        [words(["shop/web http", "50% birch, 50% cedar", cedar, "birch NoReadyEndpoints"])]
    );
}

#[test]
fn what_would_move_is_what_moves_and_nothing_is_changed_by_asking() {
    let mut core = host("worker");
    let inputs = vec![
        Input::ServiceImports(ObjectChange::Applied(import("only", "10.201.0.9"))),
        Input::EndpointSlices(ObjectChange::Applied(imported("only", "birch", &[("10.2.1.9", true, None)]))),
    ];
    after(&mut core, at(20), inputs);
    let cluster = |name: &str| ClusterId::new(name).unwrap();
    let seen = |core: &NodeCore, supposed: &Supposed| -> Vec<String> {
        let words = |shares: &[MoveShare]| {
            shares.iter().map(|share| format!("{:.0}% {}", share.percent, share.cluster)).collect::<Vec<_>>().join(", ")
        };
        let moves = core.moves(supposed, at(30)).into_iter();
        moves.map(|moved| format!("{}: {} → {}", moved.service, words(&moved.before), words(&moved.after))).collect()
    };
    let (birch, cedar) = (Supposed::PeerDrained(cluster("birch")), Supposed::PeerDrained(cluster("cedar")));
    let both = "shop/web: 67% birch, 33% cedar";
    assert_eq!(seen(&core, &birch), ["shop/only: 100% birch → ".to_owned(), format!("{both} → 100% cedar")]);
    assert_eq!(seen(&core, &cedar), [format!("{both} → 100% birch")]);
    assert!(seen(&core, &Supposed::PeerDrained(cluster("pine"))).is_empty());
    assert!(seen(&core, &Supposed::WeDrain).is_empty(), "nothing is answered here");
    assert!(after(&mut core, at(30), vec![]).0.is_empty(), "asking changed something");

    let drained = peer_in("birch", 2, MemberState::Active, PeerState::Drained);
    let (delta, _) = after(&mut core, at(40), vec![Input::ClusterPeers(ObjectChange::Applied(drained))]);
    let told: Vec<_> = delta.shares.iter().map(|change| format!("{}: {}", change.service, change.after)).collect();
    assert_eq!(told, ["shop/only http: nobody", "shop/web http: 100% cedar"]);
    assert!(seen(&core, &birch).is_empty(), "it moved");
    // Were we drained too, members would have cedar for what we answer ourselves.
    after(&mut core, at(50), applied(imported("web", "amber", &[("10.1.1.5", true, None)])));
    assert_eq!(seen(&core, &Supposed::WeDrain), ["shop/web: 50% amber, 50% cedar → 100% cedar"]);
}

#[test]
fn what_would_move_with_a_node_says_how_many_endpoints_leave_and_whom_that_leaves_with_nobody() {
    let mut core = host("worker");
    let import = |name, address| Input::ServiceImports(ObjectChange::Applied(import(name, address)));
    let slice = |name, endpoints| Input::EndpointSlices(ObjectChange::Applied(imported(name, "amber", endpoints)));
    let inputs = vec![
        import("both", "10.201.0.8"),
        import("only", "10.201.0.9"),
        // One endpoint names its node, one is where its address is.
        slice("both", &[("10.1.2.5", true, Some("worker")), ("10.1.3.5", true, None)]),
        slice("only", &[("10.1.2.6", true, None)]),
        slice("web", &[("10.1.2.7", true, Some("worker")), ("10.1.2.8", false, Some("worker"))]),
    ];
    after(&mut core, at(20), inputs);
    let seen = |node: &str| -> Vec<(String, u32, u32, Vec<String>)> {
        let moves = core.moves(&Supposed::NodeDrained(node.into()), at(30)).into_iter();
        let shares = |shares: Vec<MoveShare>| shares.into_iter().map(|share| share.cluster).collect();
        moves.map(|moved| (moved.service, moved.leaving, moved.endpoints, shares(moved.after))).collect()
    };
    let to = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let (both, only, web) = ("shop/both".to_owned(), "shop/only".to_owned(), "shop/web".to_owned());
    let expected = [(both.clone(), 1, 2, to(&["amber"])), (only, 1, 1, vec![]), (web, 1, 1, to(&["birch", "cedar"]))];
    assert_eq!(seen("worker"), expected);
    assert_eq!(seen("other"), [(both, 1, 2, to(&["amber"]))]);
    assert!(seen("gateway").is_empty() && seen("nowhere").is_empty());
}

#[test]
fn udp_flows_to_an_endpoint_that_is_serving_and_not_ready_finish_and_end_with_it() {
    let mut core = host("worker");
    let mut names = import("names", "10.201.0.9");
    names.spec.ports[0].protocol = "UDP".into();
    let is = |conditions: Option<(bool, bool)>| {
        let mut slice = imported("names", "birch", &[("10.2.1.9", true, None), ("10.2.1.8", true, None)]);
        slice.ports.as_mut().unwrap()[0].protocol = Some("UDP".into());
        let endpoints = slice.endpoints.as_mut().unwrap();
        match conditions {
            Some((ready, serving)) => {
                let said = endpoints[0].conditions.as_mut().unwrap();
                (said.ready, said.serving) = (Some(ready), Some(serving));
            }
            None => drop(endpoints.remove(0)),
        }
        Input::EndpointSlices(ObjectChange::Applied(slice))
    };
    let import = Input::ServiceImports(ObjectChange::Applied(names));
    after(&mut core, at(20), vec![import, is(Some((true, true)))]);
    let frontend = Frontend { address: "10.201.0.9".parse().unwrap(), protocol: Protocol::Udp, port: 80 };
    let backend = Backend { address: "10.2.1.9".parse().unwrap(), port: 8080 };
    assert!(!core.finishes(&frontend, &backend));
    let (delta, _) = after(&mut core, at(30), vec![is(Some((false, true)))]);
    assert!(core.finishes(&frontend, &backend) && delta.ended.is_empty());
    assert!(!core.wanted().services[&frontend].slots().contains(&backend), "no new flows");
    let (delta, _) = after(&mut core, at(40), vec![is(Some((true, true)))]);
    assert!(!core.finishes(&frontend, &backend) && delta.ended.is_empty(), "it is used again");
    for end in [is(Some((false, false))), is(None)] {
        after(&mut core, at(50), vec![is(Some((false, true)))]);
        let (delta, _) = after(&mut core, at(60), vec![end]);
        assert_eq!(delta.ended, [(frontend, backend)].into());
        after(&mut core, at(70), vec![is(Some((true, true)))]);
    }
}

#[test]
fn udp_flows_to_a_drained_cluster_finish_and_end_when_it_is_lost() {
    let mut core = host("worker");
    let mut names = import("names", "10.201.0.9");
    names.spec.ports[0].protocol = "UDP".into();
    let of = |cluster, address| {
        let mut slice = imported("names", cluster, &[(address, true, None)]);
        slice.ports.as_mut().unwrap()[0].protocol = Some("UDP".into());
        Input::EndpointSlices(ObjectChange::Applied(slice))
    };
    let import = Input::ServiceImports(ObjectChange::Applied(names));
    after(&mut core, at(20), vec![import, of("birch", "10.2.1.9"), of("cedar", "10.3.1.9")]);
    let frontend = Frontend { address: "10.201.0.9".parse().unwrap(), protocol: Protocol::Udp, port: 80 };
    let backend = Backend { address: "10.2.1.9".parse().unwrap(), port: 8080 };
    let is = |state| Input::ClusterPeers(ObjectChange::Applied(peer_in("birch", 2, MemberState::Active, state)));
    assert!(!core.finishes(&frontend, &backend));

    let (delta, changes) = after(&mut core, at(30), vec![is(PeerState::Drained)]);
    assert!(core.finishes(&frontend, &backend) && delta.ended.is_empty());
    assert!(changes.contains(&Change::ForgetFlows { frontend, backend }), "what the agent is to leave out");
    let (delta, _) = after(&mut core, at(40), vec![is(PeerState::Active)]);
    assert!(!core.finishes(&frontend, &backend) && delta.ended.is_empty(), "it is used again");

    after(&mut core, at(50), vec![is(PeerState::Drained)]);
    let down = report(0, &[("birch", Reachability::Down), ("cedar", Reachability::Up)]);
    let (delta, _) = after(&mut core, at(60), vec![Input::Report(down)]);
    assert_eq!(delta.ended, [(frontend, backend)].into());
    assert!(!core.finishes(&frontend, &backend) && !delta.is_empty());

    let up = report(0, &[("birch", Reachability::Up), ("cedar", Reachability::Up)]);
    after(&mut core, at(70), vec![Input::Report(up)]);
    assert!(core.finishes(&frontend, &backend));
    let (delta, _) = after(&mut core, at(80), vec![is(PeerState::Blocked)]);
    assert_eq!(delta.ended, [(frontend, backend)].into(), "who is cut off finishes nothing");
}
