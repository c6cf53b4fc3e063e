//! [`explain`]: what a name is answered, and which objects and whose health led to it.

use api::report::NameReport;
use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;

use crate::answer::{Transport, Verdict, answer};
use crate::name::QueryName;
use crate::query::CLASS_IN;
use crate::service::Service;
use crate::zone::{Found, Zone};

/// Answers the question as a client would be, and says why. `record_type` is `A`, `SRV`, ...
pub fn explain(zone: &Zone, name: &str, record_type: &str) -> NameReport {
    let mut report =
        NameReport { name: name.to_owned(), record_type: record_type.to_ascii_uppercase(), ..NameReport::default() };
    let (Ok(parsed), Ok(kind)) = (QueryName::parse(name), report.record_type.parse::<RecordType>()) else {
        report.response_code = "FORMERR".to_owned();
        report.reasons.push(if QueryName::parse(name).is_err() {
            "this is no DNS name: labels have 1 to 63 characters, the whole name at most 253".to_owned()
        } else {
            "this type is not known: try A, AAAA, SRV or TXT".to_owned()
        });
        return report;
    };
    let mut out = Vec::new();
    let verdict = answer(zone, &query(&parsed, kind.into()), Transport::Tcp, 0, &mut out);
    if let Verdict::Answered { code, .. } = verdict {
        report.response_code = code.as_str().to_owned();
    }
    if let Ok(message) = Message::from_vec(&out) {
        report.answers = message.answers.iter().map(ToString::to_string).collect();
    }
    report.reasons = reasons(zone, &parsed);
    report
}

/// The question as a message.
fn query(name: &QueryName, record_type: u16) -> Vec<u8> {
    let mut message = vec![0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(name.wire());
    message.push(0);
    message.extend_from_slice(&record_type.to_be_bytes());
    message.extend_from_slice(&CLASS_IN.to_be_bytes());
    message
}

fn reasons(zone: &Zone, name: &QueryName) -> Vec<String> {
    let Some(found) = zone.find(name) else {
        return vec![format!("the name is outside {}: another server answers for it", zone.origin().as_str())];
    };
    if !zone.is_known() {
        return vec!["the first state is not here yet: nothing can be answered or denied".to_owned()];
    }
    let mut reasons = Vec::new();
    match found {
        Found::Apex => reasons.push("the zone itself has SOA and NS records".to_owned()),
        Found::Version => reasons.push("dns-version has a TXT record".to_owned()),
        Found::NameServer => reasons.push("ns.dns has the addresses this server was told to have".to_owned()),
        Found::Between => reasons.push("the name has no records, but names below it have".to_owned()),
        Found::Endpoint { cluster, .. } => {
            reasons.push(format!("one endpoint of a headless service in cluster {}", cluster.id));
        }
        Found::Cluster { cluster, .. } => {
            reasons.push(format!(
                "LocalCluster.spec.dns.clusterNames is Answered: the endpoints of cluster {}",
                cluster.id
            ));
        }
        Found::Port { .. } => reasons.push("an SRV record for each target of the port".to_owned()),
        Found::Service(_) | Found::Nothing => {}
    }
    match service_of(zone, name) {
        Some(Ok(service)) => reasons.extend(service_reasons(zone, service)),
        Some(Err(missing)) => reasons.push(missing),
        None => {}
    }
    reasons
}

/// The service a name belongs to, or why there is none; nothing for names above the services.
fn service_of<'z>(zone: &'z Zone, name: &QueryName) -> Option<Result<&'z Service, String>> {
    let before = name.labels_before(zone.origin())?;
    if before < 3 || name.label(before - 1) != b"svc" {
        return None;
    }
    let label = |index: usize| String::from_utf8_lossy(name.label(index)).into_owned();
    let (namespace, service) = (label(before - 2), label(before - 3));
    let found = zone.service(&namespace, &service).filter(|service| service.import.is_some());
    Some(found.ok_or_else(|| {
        format!(
            "there is no ServiceImport {namespace}/{service}: no cluster exports it, or this one lacks the namespace"
        )
    }))
}

fn service_reasons(zone: &Zone, service: &Service) -> Vec<String> {
    let mut reasons = Vec::new();
    let Some(import) = &service.import else {
        return reasons;
    };
    let (namespace, name) = (&service.namespace, &service.name);
    if import.headless {
        reasons.push(format!("ServiceImport {namespace}/{name} is headless: its ready endpoints are answered"));
    } else {
        let addresses: Vec<String> = import.addresses().map(|address| address.to_string()).collect();
        let addresses = if addresses.is_empty() { "no address yet".to_owned() } else { addresses.join(" and ") };
        reasons.push(format!(
            "ServiceImport {namespace}/{name} has {addresses}: the node chooses the endpoint of each connection"
        ));
    }
    for cluster in service.clusters.values() {
        let ready: usize = cluster.slices.values().map(|slice| slice.hosts.len()).sum();
        let unready: u32 = cluster.slices.values().map(|slice| slice.unready).sum();
        let mut line = format!("cluster {}: {ready} ready addresses", cluster.id);
        if unready > 0 {
            line.push_str(&format!(", {unready} endpoints not ready"));
        }
        if let Some(reason) = zone.reach().reason(&cluster.id) {
            line.push_str(&format!("; left out: {reason}"));
        } else if import.headless
            && zone.reach().is_last_resort(&cluster.id)
            && !service.answering(zone.reach()).any(|answering| answering.id == cluster.id)
        {
            line.push_str("; left out while others answer: it came back a moment ago, or its gateways are going away");
        } else if import.headless && service.selected.as_ref().is_some_and(|chosen| !chosen.contains(&cluster.id)) {
            line.push_str("; left out: the routing policy for headless answers does not select it");
        }
        reasons.push(line);
    }
    if service.clusters.is_empty() {
        reasons.push("no EndpointSlice of any cluster belongs to it".to_owned());
    }
    reasons
}
