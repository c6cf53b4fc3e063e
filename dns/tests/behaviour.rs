//! Every row of the behaviour matrix: what other servers for clusterset.local do differently, and what this one does.
//! Then the rules of DNS itself.

mod fixture;

use dns::answer::Transport;
use fixture::{answers, ask, is_name_error, is_no_data, query, send, zone};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType::{A, AAAA, ANY, AXFR, IXFR, NS, SOA, SRV, TXT};

#[test]
fn the_family_a_service_does_not_have_is_no_data() {
    assert!(is_no_data(&zone(), "plain.shop.svc", AAAA));
}

#[test]
fn an_unknown_service_or_namespace_does_not_exist() {
    assert!(is_name_error(&zone(), "nope.shop.svc", A));
    assert!(is_name_error(&zone(), "web.nowhere.svc", A));
}

#[test]
fn names_between_the_zone_and_a_service_exist_without_records() {
    for name in ["shop.svc", "svc", "dns", "clusterset.local."] {
        assert!(is_no_data(&zone(), name, A), "{name}");
    }
}

#[test]
fn an_srv_name_exists_for_other_types() {
    assert!(is_no_data(&zone(), "_http._tcp.web.shop.svc", A));
    assert!(is_no_data(&zone(), "_sql._tcp.db.shop.svc", AAAA));
}

#[test]
fn a_port_without_a_name_is_in_no_srv_record() {
    assert!(answers(&zone(), "web.shop.svc", SRV).iter().all(|record| !record.contains("9999")));
    assert!(answers(&zone(), "db.shop.svc", SRV).iter().all(|record| record.contains(" 5432 ")));
    assert!(is_name_error(&zone(), "_._tcp.web.shop.svc", SRV));
}

#[test]
fn a_service_without_ports_still_has_its_address() {
    assert_eq!(answers(&zone(), "plain.shop.svc", A), ["A 242.0.0.2"]);
    assert!(is_no_data(&zone(), "plain.shop.svc", SRV));
    assert!(is_name_error(&zone(), "_tcp.plain.shop.svc", SRV));
}

#[test]
fn a_service_that_waits_for_its_address_exists_without_records() {
    assert!(is_no_data(&zone(), "waiting.shop.svc", A));
    assert!(is_no_data(&zone(), "waiting.shop.svc", SRV));
}

#[test]
fn an_endpoint_of_a_service_with_an_address_has_no_name() {
    assert!(is_name_error(&zone(), "10-1-0-1.amber.web.shop.svc", A));
}

#[test]
fn one_address_in_two_clusters_is_one_record_of_the_service_and_two_endpoints() {
    let zone = zone();
    assert_eq!(answers(&zone, "pods.shop.svc", A), ["A 10.1.0.20", "A 10.1.0.21", "A 10.3.0.20"]);
    assert_eq!(answers(&zone, "10-1-0-20.amber.pods.shop.svc", A), ["A 10.1.0.20"]);
    assert_eq!(answers(&zone, "10-1-0-20.eu-1.cedar.pods.shop.svc", A), ["A 10.1.0.20"]);
}

#[test]
fn a_protocol_below_a_service_exists_while_a_named_port_has_it() {
    assert!(is_no_data(&zone(), "_tcp.web.shop.svc", A));
    assert!(is_no_data(&zone(), "_udp.web.shop.svc", SRV));
    assert!(is_no_data(&zone(), "_tcp.db.shop.svc", A));
    assert!(is_name_error(&zone(), "_sctp.web.shop.svc", A));
}

#[test]
fn the_second_label_of_a_dotted_cluster_id_exists_for_what_is_below_it() {
    assert!(is_no_data(&zone(), "cedar.pods.shop.svc", A));
    assert!(is_name_error(&zone(), "cedar.web.shop.svc", A));
}

#[test]
fn the_zone_has_its_soa_and_its_name_server_an_address() {
    let zone = zone();
    let soa = answers(&zone, "clusterset.local.", SOA);
    assert!(soa[0].starts_with("SOA ns.dns.clusterset.local. hostmaster.clusterset.local. 1001 "), "{soa:?}");
    let message = ask(&zone, "clusterset.local.", NS);
    assert_eq!(fixture::text(&message.answers[0]), "NS ns.dns.clusterset.local.");
    assert_eq!(message.additionals[0].name.to_string(), "ns.dns.clusterset.local.");
    assert_eq!(answers(&zone, "ns.dns", A), ["A 192.0.2.53"]);
    assert!(is_no_data(&zone, "ns.dns", AAAA));
}

#[test]
fn the_zone_is_not_for_copying() {
    for record_type in [AXFR, IXFR] {
        assert_eq!(ask(&zone(), "clusterset.local.", record_type).metadata.response_code, ResponseCode::Refused);
    }
}

#[test]
fn any_has_one_small_record_whatever_the_name_holds() {
    for name in ["web.shop.svc", "db.shop.svc", "clusterset.local."] {
        let message = ask(&zone(), name, ANY);
        assert_eq!(message.answers.len(), 1, "{name}");
        assert!(fixture::text(&message.answers[0]).contains("RFC8482"), "{name}");
    }
    assert!(is_name_error(&zone(), "nope.shop.svc", ANY));
}

#[test]
fn names_outside_the_zone_are_refused_with_the_reason() {
    let zone = zone();
    for name in ["example.org.", "local.", ".", "notclusterset.local.", "web.shop.svc.cluster.local."] {
        let message = ask(&zone, name, A);
        assert_eq!(message.metadata.response_code, ResponseCode::Refused, "{name}");
        assert!(message.authorities.is_empty() && !message.metadata.authoritative);
    }
    let mut out = Vec::new();
    dns::answer::answer(&zone, &query("example.org.", A, Some(1232)), Transport::Udp, 0, &mut out);
    assert_eq!(out[out.len() - 6..], [0, 15, 0, 2, 0, 20], "extended error 20, not authoritative (RFC 8914)");
}

#[test]
fn a_server_that_knows_nothing_yet_says_so() {
    let zone = fixture::empty_catalog().publish();
    assert!(zone.is_none());
    let zone = dns::zone::Zone::unknown(dns::name::Origin::new("clusterset.local").unwrap(), &[], 1);
    let mut out = Vec::new();
    dns::answer::answer(&zone, &query("web.shop.svc.clusterset.local.", A, Some(1232)), Transport::Udp, 0, &mut out);
    assert_eq!(out[3] & 0x0f, 2);
    assert_eq!(out[out.len() - 6..], [0, 15, 0, 2, 0, 14], "extended error 14, not ready (RFC 8914)");
}

#[test]
fn another_class_is_refused() {
    let mut bytes = query("web.shop.svc.clusterset.local.", TXT, None);
    let end = bytes.len();
    bytes[end - 1] = 3;
    assert_eq!(send(&zone(), &bytes, Transport::Udp).unwrap().metadata.response_code, ResponseCode::Refused);
}

#[test]
fn an_answer_is_authoritative_keeps_recursion_desired_and_offers_none() {
    let message = ask(&zone(), "web.shop.svc", A);
    assert!(message.metadata.authoritative && message.metadata.recursion_desired);
    assert!(!message.metadata.recursion_available && !message.metadata.truncation);
    assert_eq!(message.metadata.id, 0xabcd);
}

#[test]
fn edns_is_answered_with_edns_and_only_then() {
    let zone = zone();
    let with = send(&zone, &query("web.shop.svc.clusterset.local.", A, Some(4096)), Transport::Udp).unwrap();
    assert_eq!(with.edns.as_ref().map(|edns| edns.max_payload()), Some(1232));
    let without = send(&zone, &query("web.shop.svc.clusterset.local.", A, None), Transport::Udp).unwrap();
    assert!(without.edns.is_none());
}

#[test]
fn another_version_of_edns_is_badvers() {
    let mut bytes = query("web.shop.svc.clusterset.local.", A, Some(1232));
    let version = bytes.len() - 5;
    bytes[version] = 1;
    let message = send(&zone(), &bytes, Transport::Udp).unwrap();
    let edns = message.edns.unwrap();
    let low = u16::from(message.metadata.response_code.low());
    assert_eq!((u16::from(edns.rcode_high()) << 4) | low, 16);
    assert_eq!(edns.version(), 0);
    assert!(message.answers.is_empty());
}

#[test]
fn the_do_bit_comes_back() {
    let mut bytes = query("web.shop.svc.clusterset.local.", A, Some(1232));
    let flags = bytes.len() - 4;
    bytes[flags] = 0x80;
    assert!(send(&zone(), &bytes, Transport::Udp).unwrap().edns.unwrap().flags().dnssec_ok);
}

#[test]
fn an_answer_is_never_answered() {
    let mut bytes = query("web.shop.svc.clusterset.local.", A, None);
    bytes[2] |= 0x80;
    assert!(send(&zone(), &bytes, Transport::Udp).is_none());
    assert!(send(&zone(), b"too short", Transport::Udp).is_none());
}

#[test]
fn update_and_notify_are_not_implemented_and_a_broken_question_is_malformed() {
    for opcode in [1u8, 2, 4, 5, 6, 15] {
        let mut bytes = query("clusterset.local.", SOA, None);
        bytes[2] |= opcode << 3;
        let message = send(&zone(), &bytes, Transport::Udp).unwrap();
        assert_eq!(message.metadata.response_code, ResponseCode::NotImp, "{opcode}");
        assert_eq!(message.metadata.id, 0xabcd);
    }
    let bytes = query("web.shop.svc.clusterset.local.", A, None);
    let message = send(&zone(), &bytes[..bytes.len() - 1], Transport::Udp).unwrap();
    assert_eq!(message.metadata.response_code, ResponseCode::FormErr);
}

#[test]
fn an_answer_to_a_forged_source_is_bounded_whatever_the_question() {
    let zone = zone();
    let mut out = Vec::new();
    for name in ["db.shop.svc", "web.shop.svc", "clusterset.local.", "nope.svc", "dns-version"] {
        for record_type in [A, AAAA, SRV, TXT, ANY, NS, SOA] {
            let full = if name.ends_with('.') { name.to_owned() } else { format!("{name}.{}", fixture::ZONE) };
            dns::answer::answer(&zone, &query(&full, record_type, Some(65_535)), Transport::Udp, 0, &mut out);
            assert!(out.len() <= 1232, "{name} {record_type}: {}", out.len());
        }
    }
}
