//! Any bytes as a DNS message: the answer fits its transport and is one that hickory reads, or there is none.
#![no_main]

use std::sync::LazyLock;

use dns::answer::{TCP_LIMIT, Transport, UDP_LIMIT, Verdict, answer};
use dns::catalog::Catalog;
use dns::name::Origin;
use dns::zone::Zone;
use hickory_proto::op::Message;
use libfuzzer_sys::fuzz_target;
use serde_json::json;

static ZONE: LazyLock<Zone> = LazyLock::new(|| {
    let mut catalog = Catalog::new(Zone::unknown(Origin::new("clusterset.local").expect("a good name"), &[], 1));
    for (name, kind, ips) in [("web", "ClusterSetIP", json!(["242.0.0.1", "fd00::1"])), ("db", "Headless", json!([]))] {
        let metadata = json!({ "namespace": "shop", "name": name });
        let spec = json!({ "type": kind, "ips": ips, "ports": [{ "name": "http", "port": 80 }] });
        let import = serde_json::from_value(json!({ "metadata": metadata, "spec": spec }));
        catalog.set_import(&import.expect("a good import"));
    }
    let labels = json!({
        "multicluster.kubernetes.io/service-name": "db",
        "multicluster.kubernetes.io/source-cluster": "eu-1.amber",
    });
    let endpoints: Vec<_> = (0..200).map(|n| json!({ "addresses": [format!("10.0.0.{n}")] })).collect();
    let slice = serde_json::from_value(json!({
        "metadata": { "namespace": "shop", "name": "db-1", "labels": labels },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{ "name": "sql", "port": 5432 }],
    }));
    catalog.set_slice(&slice.expect("a good slice"));
    catalog.complete();
    catalog.publish().expect("a first zone")
});

fuzz_target!(|bytes: &[u8]| {
    let mut out = Vec::new();
    for (transport, limit) in [(Transport::Udp, usize::from(UDP_LIMIT)), (Transport::Tcp, TCP_LIMIT)] {
        match answer(&ZONE, bytes, transport, bytes.len() as u32, &mut out) {
            Verdict::Ignored(_) => assert!(out.is_empty()),
            Verdict::Answered { .. } => {
                assert!(out.len() <= limit);
                assert!(Message::from_vec(&out).is_ok());
            }
        }
    }
});
