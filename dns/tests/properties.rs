//! What holds for all bytes, all orders of changes, and all names.

mod fixture;

use std::collections::BTreeSet;
use std::net::IpAddr;

use dns::answer::{Transport, Verdict, answer};
use fixture::{id, import, query, reaching, slice, zone};
use hickory_proto::op::Message;
use hickory_proto::rr::{RData, RecordType};
use proptest::prelude::*;
use serde_json::json;

/// A message that is nearly a query: the interesting mistakes are one byte away from a good one.
fn nearly_a_query() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::sample::select(vec![
        "web.shop.svc.clusterset.local",
        "_sql._tcp.db.shop.svc.clusterset.local",
        "10-3-0-20.eu-1.cedar.pods.shop.svc.clusterset.local",
        "clusterset.local",
        "",
    ]);
    let good = (name, any::<u16>(), prop::option::of(any::<u16>()))
        .prop_map(|(name, record_type, payload)| query(name, RecordType::from(record_type), payload));
    (good, prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), any::<prop::sample::Index>())
        .prop_map(|(mut bytes, changes, cut)| {
            for (place, byte) in changes {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            // Half of them stay whole.
            if cut.index(2) == 0 { bytes } else { bytes[..cut.index(bytes.len() + 1)].to_vec() }
        })
}

fn is_well_formed_or_absent(bytes: &[u8], transport: Transport, turn: u32) -> Result<(), TestCaseError> {
    static ZONE: std::sync::LazyLock<dns::zone::Zone> = std::sync::LazyLock::new(zone);
    let mut out = Vec::new();
    match answer(&ZONE, bytes, transport, turn, &mut out) {
        Verdict::Ignored(_) => prop_assert!(out.is_empty()),
        Verdict::Answered { code, .. } => {
            prop_assert!(out.len() >= 12 && out[..2] == bytes[..2] && out[2] & 0x80 != 0);
            prop_assert_eq!(u16::from(out[3] & 0x0f), code as u16 & 0x0f);
            let limit = if transport == Transport::Udp { 1232 } else { 65_535 };
            prop_assert!(out.len() <= limit);
            prop_assert!(Message::from_vec(&out).is_ok(), "hickory does not read {:?}", out);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn any_bytes_get_a_well_formed_answer_or_none(bytes in prop::collection::vec(any::<u8>(), 0..600), turn in any::<u32>()) {
        is_well_formed_or_absent(&bytes, Transport::Udp, turn)?;
    }

    #[test]
    fn a_damaged_query_gets_a_well_formed_answer_or_none(bytes in nearly_a_query(), turn in any::<u32>(), tcp in any::<bool>()) {
        is_well_formed_or_absent(&bytes, if tcp { Transport::Tcp } else { Transport::Udp }, turn)?;
    }
}

/// One pod: its cluster, the last byte of its address, its hostname, whether it is ready.
type Pod = (usize, u8, Option<u8>, bool);

const CLUSTERS: [&str; 4] = ["amber", "birch", "eu-1.cedar", "us-1.cedar"];

fn addresses(message: &Message) -> BTreeSet<IpAddr> {
    message
        .answers
        .iter()
        .map(|record| match &record.data {
            RData::A(address) => IpAddr::V4(address.0),
            RData::AAAA(address) => IpAddr::V6(address.0),
            other => panic!("{other}"),
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn answers_hold_exactly_the_ready_endpoints_of_the_clusters_in_service(
        pods in prop::collection::vec((0..4usize, 1..40u8, prop::option::of(0..5u8), any::<bool>()), 0..40),
        up in prop::collection::btree_set(1..4usize, 0..4),
        ipv6 in any::<bool>(),
        turn in any::<u32>(),
    ) {
        let pods: Vec<Pod> = pods;
        let text = |pod: &Pod| if ipv6 { format!("fd00:{}::{}", pod.0, pod.1) } else { format!("10.{}.0.{}", pod.0, pod.1) };
        let mut catalog = fixture::empty_catalog();
        catalog.set_import(&import("shop", "any", json!({ "type": "Headless", "ports": [] })));
        for (index, cluster) in CLUSTERS.iter().enumerate() {
            let of_cluster: Vec<&Pod> = pods.iter().filter(|pod| pod.0 == index).collect();
            for (part, chunk) in of_cluster.chunks(7).enumerate() {
                let endpoints: Vec<_> = chunk.iter().map(|pod| json!({
                    "addresses": [text(pod)],
                    "hostname": pod.2.map(|number| format!("pod-{number}")),
                    "conditions": { "ready": pod.3 },
                })).collect();
                let name = format!("any-{index}-{part}-{}", if ipv6 { "v6" } else { "v4" });
                catalog.set_slice(&slice("any", cluster, &name, json!(endpoints), json!([{ "name": "p", "port": 7 }])));
            }
        }
        let names: Vec<&str> = up.iter().map(|index| CLUSTERS[*index]).collect();
        catalog.set_reach(reaching(&names));
        catalog.complete();
        let zone = catalog.publish().unwrap();

        // The same by hand, without slices, halving or bytes.
        let in_service = |pod: &&Pod| pod.3 && (pod.0 == 0 || up.contains(&pod.0));
        let expected: BTreeSet<IpAddr> = pods.iter().filter(in_service).map(|pod| text(pod).parse().unwrap()).collect();
        let record_type = if ipv6 { RecordType::AAAA } else { RecordType::A };
        let ask = |name: &str, record_type| {
            let mut out = Vec::new();
            answer(&zone, &query(name, record_type, None), Transport::Tcp, turn, &mut out);
            Message::from_vec(&out).unwrap()
        };
        let message = ask("any.shop.svc.clusterset.local", record_type);
        prop_assert_eq!(&addresses(&message), &expected);
        prop_assert_eq!(message.answers.len(), expected.len(), "an address stands twice");

        for (index, cluster) in CLUSTERS.iter().enumerate() {
            for number in 0..5u8 {
                let expected: BTreeSet<IpAddr> = pods.iter().filter(in_service)
                    .filter(|pod| pod.0 == index && pod.2 == Some(number)).map(|pod| text(pod).parse().unwrap()).collect();
                let message = ask(&format!("pod-{number}.{cluster}.any.shop.svc.clusterset.local"), record_type);
                prop_assert_eq!(addresses(&message), expected);
            }
        }
        let targets: BTreeSet<String> = pods.iter().filter(in_service).map(|pod| {
            let address: IpAddr = text(pod).parse().unwrap();
            let host = pod.2.map_or(address.to_string().replace(['.', ':'], "-"), |number| format!("pod-{number}"));
            format!("{host}.{}.any.shop.svc.clusterset.local.", CLUSTERS[pod.0])
        }).collect();
        let message = ask("_p._tcp.any.shop.svc.clusterset.local", RecordType::SRV);
        let found: BTreeSet<String> = message.answers.iter().map(|record| match &record.data {
            RData::SRV(srv) => srv.target.to_string(),
            other => panic!("{other}"),
        }).collect();
        prop_assert_eq!(message.answers.len(), found.len());
        prop_assert_eq!(found, targets);
    }

    /// However a state was come to, it answers alike.
    #[test]
    fn the_zone_depends_on_the_objects_and_not_on_their_history(
        steps in prop::collection::vec((0..3u8, 0..4usize, prop::option::of(prop::collection::vec(1..20u8, 0..5))), 0..40),
    ) {
        let manifest = |service: u8, cluster: usize, hosts: &[u8]| {
            let endpoints: Vec<_> = hosts.iter().map(|host| json!({ "addresses": [format!("10.{cluster}.0.{host}")] })).collect();
            // One slice name may move between services: its labels say whose it is.
            slice(&format!("s{service}"), CLUSTERS[cluster], &format!("slice-{cluster}-v4"), json!(endpoints), json!([]))
        };
        let mut catalog = fixture::empty_catalog();
        let mut state = std::collections::BTreeMap::new();
        let mut imports = BTreeSet::new();
        for (service, cluster, hosts) in &steps {
            let name = format!("s{service}");
            match hosts {
                Some(hosts) => {
                    catalog.set_slice(&manifest(*service, *cluster, hosts));
                    state.insert(*cluster, (*service, hosts.clone()));
                }
                None if cluster % 2 == 0 => {
                    catalog.set_import(&import("shop", &name, json!({ "type": "Headless", "ports": [] })));
                    imports.insert(name);
                }
                None if *service == 0 => {
                    catalog.remove_slice("shop", &format!("slice-{cluster}-v4"));
                    state.remove(cluster);
                }
                None => {
                    catalog.remove_import("shop", &name);
                    imports.remove(&name);
                }
            }
        }
        let mut fresh = fixture::empty_catalog();
        let slices: Vec<_> = state.iter().map(|(cluster, (service, hosts))| manifest(*service, *cluster, hosts)).collect();
        fresh.reset_slices(&slices);
        let manifests: Vec<_> = imports.iter().map(|name| import("shop", name, json!({ "type": "Headless", "ports": [] }))).collect();
        fresh.reset_imports(&manifests);
        catalog.complete();
        fresh.complete();
        let (zone, fresh) = (catalog.publish().unwrap(), fresh.publish().unwrap());
        prop_assert_eq!((zone.records(), zone.imports()), (fresh.records(), fresh.imports()));
        for name in ["s0.shop.svc", "s1.shop.svc", "s2.shop.svc", "shop.svc", "10-0-0-1.amber.s0.shop.svc"] {
            let (one, other) = (fixture::ask(&zone, name, RecordType::A), fixture::ask(&fresh, name, RecordType::A));
            prop_assert_eq!(one.metadata.response_code, other.metadata.response_code);
            prop_assert_eq!(one.answers, other.answers);
        }
    }
}

#[test]
fn one_change_among_ten_thousand_services_touches_one_service() {
    let mut catalog = fixture::empty_catalog();
    let imports: Vec<_> =
        (0..10_000).map(|n| import("shop", &format!("s{n}"), json!({ "type": "Headless", "ports": [] }))).collect();
    let manifest = |n: usize, host: &str| {
        slice(&format!("s{n}"), "amber", &format!("s{n}-v4"), json!([{ "addresses": [host] }]), json!([]))
    };
    let slices: Vec<_> = (0..10_000).map(|n| manifest(n, "10.0.0.1")).collect();
    catalog.reset_imports(&imports);
    catalog.reset_slices(&slices);
    catalog.complete();
    let before = catalog.publish().unwrap();
    let work = catalog.work();

    catalog.set_slice(&manifest(77, "10.0.0.2"));
    let after = catalog.publish().unwrap();
    assert_eq!((catalog.work().services - work.services, catalog.work().slices - work.slices), (1, 1));
    let shared = (0..10_000)
        .filter(|n| {
            let name = format!("s{n}");
            std::ptr::eq(before.service("shop", &name).unwrap(), after.service("shop", &name).unwrap())
        })
        .count();
    assert_eq!(shared, 9_999);

    // Health is one value for all, whatever the number of services.
    catalog.set_reach(reaching(&["birch"]));
    assert!(catalog.publish().is_some());
    // What was said again is no change.
    catalog.reset_slices(&slices);
    assert_eq!(catalog.work().services - work.services, 2, "only the service that differs is touched");
    assert!(catalog.publish().unwrap().reach().serves(&id("amber")));
}
