//! What another cluster may say (decision 1): its own services, in namespaces we accept, with endpoints inside its own
//! prefixes, in shapes an API server would take. Each violation is refused by name; the rest goes on.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

use api::cluster_id::is_dns_label;
use api::cluster_peer::Accept;
use api::time::WallTime;
use api::{Prefix, TranslatedPrefix, translated_prefix};

use crate::advertisement::{AdvertisedService, AdvertisedSlice, Family, Item, ItemKey};
use crate::merge::MAX_PORTS;
use crate::slices::MAX_SLICE_ENDPOINTS;

/// Exports from before Kubernetes 1.0 (July 2015) come from a clock that was never set.
pub(crate) const OLDEST_PLAUSIBLE: WallTime = WallTime::from_millis(1_435_708_800_000);

/// How far another cluster's clock may run ahead before we say so: NTP keeps clocks far closer.
const CLOCK_TOLERANCE_MILLIS: u64 = 5_000;

/// The longest slice id: an object's name, a dot and 64 bits of a cut.
const MAX_SLICE_ID: usize = 253 + 1 + 64;

/// Why something a cluster says is not taken over: a metric label and a word in its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    NamespaceNotAccepted,
    InvalidName,
    InvalidPort,
    InvalidField,
    InvalidLabel,
    EndpointOutsidePrefixes,
    InvalidEndpoint,
    TooManyServices,
    TooManyEndpoints,
    TooManyBytes,
    /// Taken over, but with the present as its time.
    FutureTimestamp,
    /// Taken over, but with the present as its time.
    ImplausibleTimestamp,
    /// A first export from before this installation, remembered too long after it was made.
    LateMemory,
}

impl Refusal {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NamespaceNotAccepted => "NamespaceNotAccepted",
            Self::InvalidName => "InvalidName",
            Self::InvalidPort => "InvalidPort",
            Self::InvalidField => "InvalidField",
            Self::InvalidLabel => "InvalidLabel",
            Self::EndpointOutsidePrefixes => "EndpointOutsidePrefixes",
            Self::InvalidEndpoint => "InvalidEndpoint",
            Self::TooManyServices => "TooManyServices",
            Self::TooManyEndpoints => "TooManyEndpoints",
            Self::TooManyBytes => "TooManyBytes",
            Self::FutureTimestamp => "FutureTimestamp",
            Self::ImplausibleTimestamp => "ImplausibleTimestamp",
            Self::LateMemory => "LateMemory",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How much one cluster may say in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub services: usize,
    pub endpoints: usize,
    /// Of the items as they travel.
    pub bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        // The size that the propagation promise is made for, and its bytes with room to spare.
        Self { services: 10_000, endpoints: 100_000, bytes: 64 << 20 }
    }
}

/// What this cluster lets a peer contribute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    pub accept: Accept,
    /// Its prefixes as judged by [`api::prefix_claims`].
    pub prefixes: Vec<Prefix>,
    /// Its prefixes that overlap, and how each is seen here.
    pub translations: Vec<TranslatedPrefix>,
}

impl Terms {
    /// How an address of the cluster is seen here, which is what clients can use; `None` when it is not its own.
    pub fn seen(&self, real: IpAddr) -> Option<IpAddr> {
        let own = || self.prefixes.iter().any(|prefix| prefix.contains(real)).then_some(real);
        translated_prefix::seen(&self.translations, real).or_else(own)
    }
}

/// The item as it may be used, `None` when nothing of it may; and why it is less than what was said.
pub fn judge(key: &ItemKey, item: &Arc<Item>, terms: &Terms, now: WallTime) -> (Option<Arc<Item>>, Vec<Refusal>) {
    let mut refusals = Vec::new();
    if !is_dns_label(&key.service.namespace)
        || !is_dns_label(&key.service.name)
        || key.slice.as_ref().is_some_and(|id| id.len() > MAX_SLICE_ID || id.is_empty() || !id.is_ascii())
        || key.slice.is_some() != matches!(**item, Item::Slice(_))
    {
        return (None, vec![Refusal::InvalidName]);
    }
    if !terms.accept.accepts(&key.service.namespace) {
        return (None, vec![Refusal::NamespaceNotAccepted]);
    }
    let usable = match &**item {
        Item::Service(service) => judge_service(service, now, &mut refusals).map(Item::Service),
        Item::Slice(slice) => judge_slice(slice, terms, &mut refusals).map(Item::Slice),
    };
    let usable = usable.map(|usable| if usable == **item { item.clone() } else { Arc::new(usable) });
    (usable, refusals)
}

fn judge_service(service: &AdvertisedService, now: WallTime, refusals: &mut Vec<Refusal>) -> Option<AdvertisedService> {
    let one_of = |value: &Option<String>, known: &[&str]| value.as_deref().is_none_or(|value| known.contains(&value));
    let timeout = service.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let well_formed = one_of(&service.session_affinity, &["None", "ClientIP"])
        && one_of(&service.internal_traffic_policy, &["Cluster", "Local"])
        && service.traffic_distribution.as_ref().is_none_or(|value| is_token(value))
        && timeout.and_then(|client| client.timeout_seconds).is_none_or(|seconds| (1..=86_400).contains(&seconds))
        && service.ip_families.len() <= 2;
    if !well_formed {
        refusals.push(Refusal::InvalidField);
        return None;
    }
    let mut usable = service.clone();
    usable.ports.retain(|port| {
        (port.name.is_empty() || is_dns_label(&port.name))
            && is_protocol(&port.protocol)
            && port.port > 0
            && port
                .app_protocol
                .as_ref()
                .is_none_or(|name| name.len() <= 253 && name.bytes().all(|b| b.is_ascii_graphic()))
    });
    usable.ports.truncate(MAX_PORTS);
    if usable.ports.len() != service.ports.len() {
        refusals.push(Refusal::InvalidPort);
    }
    usable.exported_labels.retain(|key, value| is_label_key(key) && is_label_value(value));
    usable.exported_annotations.retain(|key, _| is_label_key(key));
    let size: usize = usable.exported_annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > crate::local::MAX_EXPORTED_BYTES {
        usable.exported_annotations = BTreeMap::new();
    }
    if usable.exported_labels != service.exported_labels || usable.exported_annotations != service.exported_annotations
    {
        refusals.push(Refusal::InvalidLabel);
    }
    let first = service.first_exported;
    if first > now {
        if first.as_millis() > now.as_millis() + CLOCK_TOLERANCE_MILLIS {
            refusals.push(Refusal::FutureTimestamp);
        }
        usable.first_exported = now;
    } else if first < OLDEST_PLAUSIBLE {
        refusals.push(Refusal::ImplausibleTimestamp);
        usable.first_exported = now;
    }
    Some(usable)
}

fn judge_slice(slice: &AdvertisedSlice, terms: &Terms, refusals: &mut Vec<Refusal>) -> Option<AdvertisedSlice> {
    if slice.endpoints.len() > MAX_SLICE_ENDPOINTS {
        refusals.push(Refusal::TooManyEndpoints);
        return None;
    }
    let mut usable = slice.clone();
    usable.ports.retain(|port| {
        (port.name.is_empty() || is_dns_label(&port.name)) && is_protocol(&port.protocol) && port.port > 0
    });
    usable.ports.truncate(MAX_PORTS);
    if usable.ports.len() != slice.ports.len() {
        refusals.push(Refusal::InvalidPort);
    }
    let mut outside = false;
    let mut malformed = false;
    usable.endpoints.retain_mut(|endpoint| {
        let seen = terms.seen(endpoint.address);
        let inside = seen.is_some();
        let formed = Family::of(endpoint.address) == slice.family
            && endpoint.hostname.as_ref().is_none_or(|name| is_dns_label(name))
            && endpoint.node.as_ref().is_none_or(|name| name.len() <= 253)
            && endpoint.zone.as_ref().is_none_or(|name| is_label_value(name));
        outside |= !inside;
        malformed |= !formed;
        endpoint.address = seen.unwrap_or(endpoint.address);
        inside && formed
    });
    refusals.extend(outside.then_some(Refusal::EndpointOutsidePrefixes));
    refusals.extend(malformed.then_some(Refusal::InvalidEndpoint));
    Some(usable)
}

fn is_protocol(text: &str) -> bool {
    ["TCP", "UDP", "SCTP"].contains(&text)
}

fn is_token(text: &str) -> bool {
    (1..=63).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// A label's value: at most 63 characters, letters and digits at both ends (Kubernetes, "Labels and Selectors").
pub fn is_label_value(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// A label's or annotation's key: a name, before it a DNS subdomain and a slash where there is one.
pub fn is_label_key(text: &str) -> bool {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    !name.is_empty()
        && is_label_value(name)
        && prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(is_dns_label))
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;
    use crate::advertisement::ServiceName;
    use crate::testing::{plain_service, plain_slice, service, slice, time};

    fn terms() -> Terms {
        Terms { prefixes: vec!["10.2.0.0/16".parse().unwrap()], ..Terms::default() }
    }

    fn web() -> ServiceName {
        ServiceName::new("shop", "web")
    }

    #[test]
    fn what_is_in_order_is_taken_over_as_it_is() {
        let item = service(1);
        let (usable, refusals) = judge(&ItemKey::service(web()), &item, &terms(), time(9));
        assert!(Arc::ptr_eq(&usable.unwrap(), &item) && refusals.is_empty());
    }

    #[test]
    fn a_namespace_that_is_not_accepted_is_refused() {
        let key = ItemKey::service(ServiceName::new("kube-system", "dns"));
        assert_eq!(judge(&key, &service(1), &terms(), time(9)), (None, vec![Refusal::NamespaceNotAccepted]));
    }

    #[test]
    fn endpoints_outside_the_clusters_prefixes_are_left_out_and_the_others_stay() {
        let item = slice(&["10.2.0.1", "10.1.0.1", "127.0.0.1"]);
        let (usable, refusals) = judge(&ItemKey::slice(web(), "a"), &item, &terms(), time(9));
        assert_eq!(*usable.unwrap(), *slice(&["10.2.0.1"]));
        assert_eq!(refusals, [Refusal::EndpointOutsidePrefixes]);
    }

    #[test]
    fn times_to_come_and_times_before_kubernetes_count_as_now_and_are_named() {
        for (first, refusal) in
            [(time(1_000), Refusal::FutureTimestamp), (WallTime::from_millis(7), Refusal::ImplausibleTimestamp)]
        {
            let mut service = plain_service(0);
            service.first_exported = first;
            let (usable, refusals) =
                judge(&ItemKey::service(web()), &Arc::new(Item::Service(service)), &terms(), time(9));
            assert_eq!((*usable.unwrap() == *crate::testing::service(9), refusals), (true, vec![refusal]));
        }
    }

    #[test]
    fn a_label_no_api_server_takes_does_not_stop_the_service() {
        let mut bad = plain_service(1);
        bad.exported_labels = [("a b".to_string(), "c".to_string()), ("team".to_string(), "a".to_string())].into();
        let (usable, refusals) = judge(&ItemKey::service(web()), &Arc::new(Item::Service(bad)), &terms(), time(9));
        assert!(matches!(&*usable.unwrap(), Item::Service(service) if service.exported_labels.len() == 1));
        assert_eq!(refusals, [Refusal::InvalidLabel]);
    }

    #[test]
    fn a_slice_under_a_services_key_or_too_large_is_refused_by_name() {
        assert_eq!(judge(&ItemKey::service(web()), &slice(&["10.2.0.1"]), &terms(), time(9)).1, [Refusal::InvalidName]);
        let mut large = plain_slice(&["10.2.0.1"]);
        large.endpoints = vec![large.endpoints[0].clone(); 101];
        let item = Arc::new(Item::Slice(large));
        assert_eq!(judge(&ItemKey::slice(web(), "a"), &item, &terms(), time(9)).1, [Refusal::TooManyEndpoints]);
    }
}
