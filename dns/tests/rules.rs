//! Every rule D-1 to D-18 of the clusterset's DNS specification (KEP-1645) and of its basis, as promises about answers.

mod fixture;

use std::collections::BTreeSet;

use api::local_cluster::{ClusterNames, DnsSettings, EmptyName};
use dns::answer::Transport;
use fixture::{answers, ask, catalog, id, import, is_name_error, is_no_data, query, reaching, send, slice, zone};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType::{A, AAAA, ANY, CNAME, MX, SRV, TXT};
use serde_json::json;

#[test]
fn d1_dns_version_is_the_schema_of_the_specification() {
    let message = ask(&zone(), "dns-version", TXT);
    assert_eq!(fixture::text(&message.answers[0]), "TXT 1.0.0");
    assert_eq!(message.answers[0].ttl, 28_800);
}

#[test]
fn d1_dns_version_exists_for_every_other_type() {
    assert!(is_no_data(&zone(), "dns-version", A));
    assert!(is_name_error(&zone(), "below.dns-version", TXT));
}

#[test]
fn d2_names_compare_without_case_and_come_back_as_they_were_asked() {
    let zone = zone();
    assert_eq!(answers(&zone, "WeB.sHoP.SvC.ClusterSet.LOCAL.", A), ["A 242.0.0.1"]);
    let bytes = query("WeB.sHoP.SvC.ClusterSet.LOCAL.", A, None);
    let mut out = Vec::new();
    dns::answer::answer(&zone, &bytes, Transport::Udp, 0, &mut out);
    assert_eq!(out[12..bytes.len()], bytes[12..]);
}

#[test]
fn d3_a_service_has_all_its_clusterset_addresses() {
    let zone = zone();
    assert_eq!(answers(&zone, "web.shop.svc", A), ["A 242.0.0.1"]);
    assert_eq!(answers(&zone, "web.shop.svc", AAAA), ["AAAA fd00:242::1"]);
    assert_eq!(ask(&zone, "web.shop.svc", A).answers[0].ttl, 5);
}

#[test]
fn d4_a_named_port_has_an_srv_record_with_the_imports_number() {
    let message = ask(&zone(), "_http._tcp.web.shop.svc", SRV);
    assert_eq!(fixture::text(&message.answers[0]), "SRV 0 100 80 web.shop.svc.clusterset.local.");
    let mut glue: Vec<_> = message.additionals.iter().map(fixture::text).collect();
    glue.sort();
    assert_eq!(glue, ["A 242.0.0.1", "AAAA fd00:242::1"]);
    assert!(message.additionals.iter().all(|record| record.name.to_string() == "web.shop.svc.clusterset.local."));
}

#[test]
fn d4_a_port_of_another_name_or_protocol_does_not_exist() {
    for name in ["_nope._tcp", "_http._udp", "_._tcp", "http._tcp", "_http.tcp", "_9999._tcp", "_http._sctp"] {
        assert!(is_name_error(&zone(), &format!("{name}.web.shop.svc"), SRV), "{name}");
    }
}

#[test]
fn d5_a_headless_service_has_every_ready_endpoint_of_every_cluster() {
    let zone = zone();
    assert_eq!(answers(&zone, "db.shop.svc", A), ["A 10.1.0.10", "A 10.1.0.11", "A 10.2.0.10"]);
    assert_eq!(answers(&zone, "db.shop.svc", AAAA), ["AAAA fd00:1::10", "AAAA fd00:1::11"]);
    assert_eq!(ask(&zone, "db.shop.svc", A).answers[0].ttl, 1);
}

#[test]
fn d5_a_headless_service_without_ready_endpoints_does_not_exist() {
    for name in ["empty.shop.svc", "_tcp._tcp.empty.shop.svc", "10-1-0-30.amber.empty.shop.svc", "amber.empty.shop.svc"]
    {
        assert!(is_name_error(&zone(), name, A), "{name}");
    }
}

#[test]
fn d5_a_headless_service_of_one_family_has_no_data_in_the_other() {
    assert!(is_no_data(&zone(), "six.shop.svc", A));
    assert_eq!(answers(&zone(), "six.shop.svc", AAAA), ["AAAA 5678:abcd::"]);
}

#[test]
fn d6_an_endpoint_is_found_by_hostname_and_cluster() {
    let zone = zone();
    assert_eq!(answers(&zone, "db-0.amber.db.shop.svc", A), ["A 10.1.0.10"]);
    assert_eq!(answers(&zone, "db-0.amber.db.shop.svc", AAAA), ["AAAA fd00:1::10"]);
    assert_eq!(answers(&zone, "db-0.birch.db.shop.svc", A), ["A 10.2.0.10"]);
    assert!(is_no_data(&zone, "db-0.birch.db.shop.svc", AAAA));
    assert!(is_name_error(&zone, "db-9.amber.db.shop.svc", A));
    assert!(is_name_error(&zone, "db-0.elm.db.shop.svc", A));
}

#[test]
fn d6_an_endpoint_without_hostname_is_found_by_its_address_with_dashes() {
    let zone = zone();
    assert_eq!(answers(&zone, "10-1-0-20.amber.pods.shop.svc", A), ["A 10.1.0.20"]);
    assert_eq!(answers(&zone, "5678-abcd--0.amber.six.shop.svc", AAAA), ["AAAA 5678:abcd::"]);
    // Where there is a hostname it is the only name.
    assert!(is_name_error(&zone, "10-1-0-10.amber.db.shop.svc", A));
}

#[test]
fn d6_a_cluster_id_of_two_labels_is_read_as_it_is_written() {
    let zone = zone();
    assert_eq!(answers(&zone, "10-3-0-20.eu-1.cedar.pods.shop.svc", A), ["A 10.3.0.20"]);
    let targets = answers(&zone, "_tcp._tcp.pods.shop.svc", SRV);
    assert!(targets.contains(&"SRV 0 100 42 10-3-0-20.eu-1.cedar.pods.shop.svc.clusterset.local.".to_owned()));
}

#[test]
fn d7_a_headless_service_has_an_srv_record_for_every_endpoint_with_the_slices_port() {
    let expected = [
        "SRV 0 100 5432 db-0.amber.db.shop.svc.clusterset.local.",
        "SRV 0 100 5432 db-0.birch.db.shop.svc.clusterset.local.",
        "SRV 0 100 5432 db-1.amber.db.shop.svc.clusterset.local.",
    ];
    assert_eq!(answers(&zone(), "_sql._tcp.db.shop.svc", SRV), expected);
    assert_eq!(answers(&zone(), "_sql-udp._udp.db.shop.svc", SRV), expected);
    assert!(is_name_error(&zone(), "_sql._udp.db.shop.svc", SRV));
}

#[test]
fn d7_every_target_of_an_srv_record_is_a_name_that_is_answered() {
    let zone = zone();
    for name in ["db.shop.svc", "pods.shop.svc", "six.shop.svc", "web.shop.svc"] {
        for record in ask(&zone, name, SRV).answers {
            let hickory_proto::rr::RData::SRV(srv) = &record.data else { panic!("{record}") };
            let target = srv.target.to_string();
            let found = answers(&zone, &target, A).len() + answers(&zone, &target, AAAA).len();
            assert!(found > 0, "{target} of {name} has no address");
        }
    }
}

#[test]
fn d8_the_name_of_a_cluster_below_a_service_does_not_exist() {
    let zone = zone();
    for name in ["amber.web", "amber.db", "birch.db", "eu-1.cedar.pods", "elm.db"] {
        for record_type in [A, AAAA, SRV, TXT, ANY] {
            assert!(is_name_error(&zone, &format!("{name}.shop.svc"), record_type), "{name} {record_type}");
        }
    }
}

#[test]
fn d8_the_operator_may_have_it_exist_without_records() {
    let mut catalog = catalog();
    catalog.set_settings(DnsSettings { empty_cluster_name: EmptyName::NoData, ..DnsSettings::default() });
    let zone = catalog.publish().unwrap();
    assert!(is_no_data(&zone, "amber.db.shop.svc", A));
    assert!(is_no_data(&zone, "eu-1.cedar.pods.shop.svc", A));
    // Nothing is below it for a service with an address, nor for a cluster that has no endpoint.
    assert!(is_name_error(&zone, "amber.web.shop.svc", A));
    assert!(is_name_error(&zone, "elm.db.shop.svc", A));
}

#[test]
fn d8_the_operator_may_have_it_answered_with_that_clusters_endpoints() {
    let mut catalog = catalog();
    catalog.set_settings(DnsSettings { cluster_names: ClusterNames::Answered, ..DnsSettings::default() });
    let zone = catalog.publish().unwrap();
    assert_eq!(answers(&zone, "amber.web.shop.svc", A), ["A 10.1.0.1", "A 10.1.0.2"]);
    assert_eq!(answers(&zone, "birch.web.shop.svc", A), ["A 10.2.0.1", "A 10.2.0.2"]);
    assert!(is_no_data(&zone, "birch.web.shop.svc", AAAA));
    assert_eq!(answers(&zone, "birch.web.shop.svc", SRV), ["SRV 0 100 8080 birch.web.shop.svc.clusterset.local."]);
    assert_eq!(answers(&zone, "amber.db.shop.svc", A), ["A 10.1.0.10", "A 10.1.0.11"]);
    assert_eq!(answers(&zone, "eu-1.cedar.pods.shop.svc", A), ["A 10.1.0.20", "A 10.3.0.20"]);
    assert_eq!(
        answers(&zone, "amber.db.shop.svc", SRV),
        [
            "SRV 0 100 5432 db-0.amber.db.shop.svc.clusterset.local.",
            "SRV 0 100 5432 db-1.amber.db.shop.svc.clusterset.local.",
        ]
    );
    assert!(is_name_error(&zone, "elm.web.shop.svc", A));
    catalog.set_reach(reaching(&[]));
    let zone = catalog.publish().unwrap();
    assert!(is_name_error(&zone, "birch.web.shop.svc", A), "a silent cluster is not answered");
}

#[test]
fn d9_reverse_names_are_refused_so_that_another_server_is_asked() {
    let message = ask(&zone(), "1.0.0.242.in-addr.arpa.", hickory_proto::rr::RecordType::PTR);
    assert_eq!(message.metadata.response_code, ResponseCode::Refused);
    assert!(!message.metadata.authoritative);
}

#[test]
fn d10_readiness_that_is_not_told_is_ready_and_not_ready_is_absent() {
    let zone = zone();
    assert!(answers(&zone, "db.shop.svc", A).contains(&"A 10.1.0.11".to_owned()));
    assert!(!answers(&zone, "db.shop.svc", A).contains(&"A 10.1.0.12".to_owned()));
    assert!(is_name_error(&zone, "db-2.amber.db.shop.svc", A));
}

#[test]
fn d11_there_are_no_aliases() {
    assert!(is_no_data(&zone(), "web.shop.svc", CNAME));
    assert!(is_no_data(&zone(), "web.shop.svc", MX));
}

#[test]
fn d12_a_services_own_srv_has_each_target_and_port_once() {
    let zone = zone();
    let web = "web.shop.svc.clusterset.local.";
    assert_eq!(answers(&zone, "web.shop.svc", SRV), [format!("SRV 0 100 53 {web}"), format!("SRV 0 100 80 {web}")]);
    // TCP and UDP on one number, and both families of one hostname, are one record.
    assert_eq!(answers(&zone, "db.shop.svc", SRV).len(), 3);
    assert_eq!(answers(&zone, "pods.shop.svc", SRV).len(), 4);
}

#[test]
fn d13_a_name_too_long_for_dns_is_malformed_and_the_longest_is_answered() {
    let label = "a".repeat(63);
    let longest = format!("{label}.{label}.{label}.{}.{}", "a".repeat(44), fixture::ZONE);
    assert_eq!(longest.len(), 254);
    assert!(is_name_error(&zone(), &longest, A));
    let long = format!("{label}.{label}.{label}.{}.{}", "a".repeat(45), fixture::ZONE);
    let message = send(&zone(), &query(&long, A, None), Transport::Udp).unwrap();
    assert_eq!(message.metadata.response_code, ResponseCode::FormErr);
}

#[test]
fn d13_a_target_too_long_for_dns_is_left_out_and_the_others_stay() {
    let mut catalog = catalog();
    let longest = |letter: &str| letter.repeat(63);
    let (namespace, service, cluster) = (longest("n"), longest("s"), longest("c"));
    catalog.set_import(&import(&namespace, &service, json!({ "type": "Headless", "ports": [] })));
    let endpoints = json!([{ "addresses": ["10.9.0.1"], "hostname": longest("h") }, { "addresses": ["10.9.0.2"], "hostname": "ok" }]);
    let mut manifest = slice(&service, &cluster, "long-v4", endpoints, json!([{ "name": "p", "port": 1 }]));
    manifest.metadata.namespace = Some(namespace.clone());
    catalog.set_slice(&manifest);
    let zone = catalog.publish().unwrap();
    let name = format!("{service}.{namespace}.svc");
    let targets = answers(&zone, &name, SRV);
    assert_eq!(targets, [format!("SRV 0 100 1 ok.{cluster}.{service}.{namespace}.svc.clusterset.local.")]);
    assert_eq!(answers(&zone, &name, A).len(), 2);
}

#[test]
fn d14_a_namespace_exists_while_a_service_is_imported_into_it() {
    let mut catalog = catalog();
    catalog.set_import(&import("bank", "pay", json!({ "type": "ClusterSetIP", "ips": ["242.0.0.9"], "ports": [] })));
    let zone = catalog.publish().unwrap();
    assert!(is_no_data(&zone, "bank.svc", A));
    assert!(is_name_error(&zone, "nowhere.svc", A));
    catalog.remove_import("bank", "pay");
    assert!(is_name_error(&catalog.publish().unwrap(), "bank.svc", A));
}

#[test]
fn d15_a_negative_answer_carries_an_soa_whose_serial_moves_with_the_zone() {
    let serial = |zone: &dns::zone::Zone| {
        let message = ask(zone, "nope.shop.svc", A);
        let hickory_proto::rr::RData::SOA(soa) = &message.authorities[0].data else { panic!("no SOA") };
        assert_eq!((soa.minimum, message.authorities[0].ttl), (1, 1));
        assert_eq!(soa.mname.to_string(), "ns.dns.clusterset.local.");
        assert_eq!(soa.rname.to_string(), "hostmaster.clusterset.local.");
        soa.serial
    };
    let mut catalog = catalog();
    let first = serial(&catalog.publish().unwrap());
    catalog.remove_import("shop", "plain");
    assert_eq!(serial(&catalog.publish().unwrap()), first + 1);
    assert!(catalog.publish().is_none(), "nothing changed, so there is no new zone");
}

#[test]
fn d16_before_the_first_state_is_known_every_name_of_the_zone_fails() {
    let mut catalog = fixture::empty_catalog();
    catalog.set_import(&import("shop", "web", json!({ "type": "ClusterSetIP", "ips": ["242.0.0.1"], "ports": [] })));
    let zone = catalog.publish().unwrap();
    for name in ["web.shop.svc", "nope.shop.svc", "", "dns-version"] {
        let name = format!("{name}.{}", fixture::ZONE);
        let message = ask(&zone, name.trim_start_matches('.'), A);
        assert_eq!(message.metadata.response_code, ResponseCode::ServFail, "{name}");
    }
    assert_eq!(ask(&zone, "example.org.", A).metadata.response_code, ResponseCode::Refused);
}

#[test]
fn d17_a_name_with_a_search_suffix_of_the_cluster_is_refused_at_once() {
    let message = ask(&zone(), "web.shop.svc.clusterset.local.shop.svc.cluster.local.", A);
    assert_eq!(message.metadata.response_code, ResponseCode::Refused);
}

#[test]
fn d18_what_does_not_fit_a_datagram_says_so_and_fits_over_tcp() {
    let mut catalog = catalog();
    let pods: Vec<_> = (1..=200).map(|host| json!({ "addresses": [format!("10.7.0.{host}")] })).collect();
    catalog.set_import(&import("shop", "big", json!({ "type": "Headless", "ports": [] })));
    catalog.set_slice(&slice("big", "amber", "big-v4", json!(pods), json!([{ "name": "p", "port": 1 }])));
    let zone = catalog.publish().unwrap();
    for record_type in [A, SRV] {
        for (payload, most) in
            [(None, 512), (Some(100), 512), (Some(800), 800), (Some(1232), 1232), (Some(65_535), 1232)]
        {
            let bytes = query("big.shop.svc.clusterset.local.", record_type, payload);
            let mut out = Vec::new();
            dns::answer::answer(&zone, &bytes, Transport::Udp, 7, &mut out);
            let message = hickory_proto::op::Message::from_vec(&out).unwrap();
            assert!(message.metadata.truncation && out.len() <= most && out.len() > most - 120, "{}", out.len());
            assert_eq!(message.edns.is_some(), payload.is_some());
        }
        assert_eq!(answers(&zone, "big.shop.svc", record_type).len(), 200);
        assert!(!ask(&zone, "big.shop.svc", record_type).metadata.truncation);
    }
}

#[test]
fn a_cluster_out_of_service_answers_nowhere_and_comes_back() {
    let mut catalog = catalog();
    catalog.set_reach(reaching(&[]));
    let zone = catalog.publish().unwrap();
    assert_eq!(answers(&zone, "db.shop.svc", A), ["A 10.1.0.10", "A 10.1.0.11"]);
    assert_eq!(answers(&zone, "_sql._tcp.db.shop.svc", SRV).len(), 2);
    assert!(is_name_error(&zone, "db-0.birch.db.shop.svc", A));
    assert_eq!(answers(&zone, "web.shop.svc", A), ["A 242.0.0.1"], "the address stays: the node chooses");
    catalog.set_reach(reaching(&["birch"]));
    assert_eq!(answers(&catalog.publish().unwrap(), "db.shop.svc", A).len(), 3);
}

#[test]
fn a_policy_for_a_headless_service_narrows_its_name_and_leaves_each_endpoints_own() {
    let mut catalog = catalog();
    catalog.select("shop", "db", Some(BTreeSet::from([id("birch")])));
    let zone = catalog.publish().unwrap();
    assert_eq!(answers(&zone, "db.shop.svc", A), ["A 10.2.0.10"]);
    assert!(is_no_data(&zone, "db.shop.svc", AAAA));
    assert_eq!(answers(&zone, "db-0.amber.db.shop.svc", A), ["A 10.1.0.10"]);
    catalog.select("shop", "db", Some(BTreeSet::new()));
    assert!(is_no_data(&catalog.publish().unwrap(), "db.shop.svc", A), "names below it exist");
}

#[test]
fn answers_of_several_addresses_begin_at_each_of_them_in_turn() {
    let zone = zone();
    let bytes = query("db.shop.svc.clusterset.local.", A, None);
    let mut firsts = BTreeSet::new();
    let mut out = Vec::new();
    for turn in 0..3 {
        dns::answer::answer(&zone, &bytes, Transport::Udp, turn, &mut out);
        let message = hickory_proto::op::Message::from_vec(&out).unwrap();
        assert_eq!(message.answers.len(), 3);
        firsts.insert(fixture::text(&message.answers[0]));
    }
    assert_eq!(firsts.len(), 3);
}
