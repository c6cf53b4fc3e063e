//! The manifests an operator of plain hosts writes, made from the world's clusters and pods.

use std::fmt;
use std::fmt::Write as _;

use crate::cluster::Cluster;
use crate::pod::Pod;

/// A LocalCluster manifest; a test changes what it wants before it is written.
#[derive(Clone, Debug)]
pub struct LocalCluster {
    pub cluster_id: String,
    pub cluster_set_id: String,
    pub pod_prefixes: Vec<String>,
    pub infrastructure_prefixes: Vec<String>,
    pub cluster_set_prefixes: Vec<String>,
    /// What overlapping prefixes of peers are seen as: nothing, for none that may overlap.
    pub translation_prefixes: Vec<String>,
    /// `Exported` or `Open`.
    pub pod_reachability: &'static str,
    pub labels: Vec<(String, String)>,
    /// How many gateways there may be, and lanes in each.
    pub slots: u8,
    pub lanes: u8,
    /// Where peers dial the gateways: nothing, for the gateway's own addresses.
    pub external_addresses: Vec<String>,
}

impl LocalCluster {
    /// With all ranges of `cluster`.
    pub fn of(cluster: &Cluster) -> Self {
        let texts = |ranges: crate::addresses::Ranges| ranges.both().iter().map(ToString::to_string).collect();
        Self {
            cluster_id: cluster.name().to_owned(),
            cluster_set_id: "demo".into(),
            pod_prefixes: texts(cluster.ranges().pods()),
            infrastructure_prefixes: texts(cluster.ranges().infrastructure()),
            cluster_set_prefixes: texts(cluster.ranges().clusterset()),
            translation_prefixes: Vec::new(),
            pod_reachability: "Exported",
            labels: Vec::new(),
            slots: u8::try_from(cluster.gateways().len()).unwrap_or(u8::MAX).max(1),
            lanes: 1,
            external_addresses: Vec::new(),
        }
    }
}

impl fmt::Display for LocalCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "apiVersion: tombolo.dev/v1alpha1\nkind: LocalCluster\nmetadata:\n  name: local\nspec:")?;
        writeln!(f, "  clusterId: {}\n  clusterSetId: {}", self.cluster_id, self.cluster_set_id)?;
        writeln!(f, "  podPrefixes: [{}]", quoted(&self.pod_prefixes))?;
        writeln!(f, "  infrastructurePrefixes: [{}]", quoted(&self.infrastructure_prefixes))?;
        writeln!(f, "  clusterSetPrefixes: [{}]", quoted(&self.cluster_set_prefixes))?;
        if !self.translation_prefixes.is_empty() {
            writeln!(f, "  translationPrefixes: [{}]", quoted(&self.translation_prefixes))?;
        }
        writeln!(f, "  podReachability: {}", self.pod_reachability)?;
        writeln!(f, "  gateways:\n    slots: {}\n    lanes: {}", self.slots, self.lanes)?;
        if !self.external_addresses.is_empty() {
            writeln!(f, "    externalAddresses: [{}]", quoted(&self.external_addresses))?;
        }
        if !self.labels.is_empty() {
            writeln!(f, "  labels:")?;
            for (key, value) in &self.labels {
                writeln!(f, "    {key}: {value}")?;
            }
        }
        Ok(())
    }
}

fn quoted(texts: &[String]) -> String {
    texts.iter().map(|text| format!("\"{text}\"")).collect::<Vec<_>>().join(", ")
}

/// A Service with its endpoints, as a plain host's manifest has them: one EndpointSlice a family.
#[derive(Clone, Debug)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    pub headless: bool,
    /// Name, protocol, the service's port, the endpoints' port.
    pub ports: Vec<(String, &'static str, u16, u16)>,
    pub exported: bool,
}

impl Service {
    /// An exported service with the port `http`, TCP 80.
    pub fn http(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            headless: false,
            ports: vec![("http".into(), "TCP", 80, 80)],
            exported: true,
        }
    }

    pub fn headless(mut self) -> Self {
        self.headless = true;
        self
    }

    pub fn unexported(mut self) -> Self {
        self.exported = false;
        self
    }

    pub fn with_port(mut self, name: &str, protocol: &'static str, port: u16, target: u16) -> Self {
        self.ports.push((name.into(), protocol, port, target));
        self
    }

    /// The documents of this service with these pods behind it.
    pub fn manifest(&self, pods: &[&Pod]) -> String {
        let (namespace, name) = (&self.namespace, &self.name);
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n{}  ports:\n",
            if self.headless { "  clusterIP: None\n" } else { "" }
        );
        // Writing to a String cannot fail.
        for (port_name, protocol, port, target) in &self.ports {
            let _ =
                writeln!(text, "  - {{name: {port_name}, protocol: {protocol}, port: {port}, targetPort: {target}}}");
        }
        for (family, suffix) in [("IPv4", "v4"), ("IPv6", "v6")] {
            let _ = write!(
                text,
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-{suffix}\n  \
                 namespace: {namespace}\n  labels:\n    kubernetes.io/service-name: {name}\naddressType: {family}\nports:\n"
            );
            for (port_name, protocol, _, target) in &self.ports {
                let _ = writeln!(text, "- {{name: {port_name}, protocol: {protocol}, port: {target}}}");
            }
            let _ = writeln!(text, "endpoints:{}", if pods.is_empty() { " []" } else { "" });
            for pod in pods {
                let address = if family == "IPv4" { pod.addresses().both()[0] } else { pod.addresses().both()[1] };
                let _ = writeln!(
                    text,
                    "- {{addresses: [\"{address}\"], hostname: {}, nodeName: {}, conditions: {{ready: true}}}}",
                    pod.pod_name(),
                    pod.node().node_name()
                );
            }
        }
        if self.exported {
            text.push_str(&export(namespace, name));
        }
        text
    }
}

/// A Namespace: services of it are imported from then on.
pub fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n")
}

/// A ServiceExport, as one more document.
pub fn export(namespace: &str, name: &str) -> String {
    format!(
        "---\napiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata:\n  name: {name}\n  namespace: {namespace}\n"
    )
}

/// A RoutingPolicy with one tier that shares by weight.
pub fn weighted_policy(namespace: &str, service: &str, weights: &[(&str, u16)]) -> String {
    let clusters: Vec<String> =
        weights.iter().map(|(cluster, weight)| format!("{{cluster: {cluster}, weight: {weight}}}")).collect();
    format!(
        "apiVersion: tombolo.dev/v1alpha1\nkind: RoutingPolicy\nmetadata:\n  name: {service}\n  namespace: {namespace}\n\
         spec:\n  targetRefs:\n  - name: {service}\n  tiers:\n  - clusters: [{}]\n",
        clusters.join(", ")
    )
}
