//! [`End`]: one cluster's gateway as a process of its own, and what its controller would hand out.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use api::ClusterId;
use api::keys::{TunnelKey, control_address};
use api::member_record::{LaneRecord, MemberRecord, MemberState, SignedRecord, SlotRecord};
use identity::Identity;
use netns_tests::{Cluster, Node, Process};
use nlink::netlink::route::{Ipv4Route, Ipv6Route};
use serde_json::{Value, json};
use x25519_dalek::{PublicKey, StaticSecret};

/// Everything here happens within milliseconds; a machine that also builds gets this much.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// The gateway announces nothing to its tests.
const LOOK_EVERY: Duration = Duration::from_millis(10);

pub(crate) const PORT: u16 = 51_820;

/// A cluster's gateway, stopped or running.
pub(crate) struct End {
    pub(crate) cluster: Cluster,
    pub(crate) node: Node,
    pub(crate) identity: Identity,
    pub(crate) secrets: Vec<StaticSecret>,
    /// Of this cluster, for the relay.
    pub(crate) controllers: Vec<String>,
    process: Option<Process>,
    starts: u32,
    objects: Vec<Value>,
}

impl End {
    /// A gateway on the cluster's gateway node, with this many lanes, not yet started.
    pub(crate) fn new(cluster: &Cluster, lanes: u16) -> Result<Self> {
        let node = cluster.gateway()?.clone();
        let identity = Identity::generate()?;
        let number = cluster.number();
        let secrets = (0..lanes).map(|lane| StaticSecret::from([number * 16 + lane as u8 + 1; 32])).collect();
        let mut end = Self {
            cluster: cluster.clone(),
            node,
            identity,
            secrets,
            controllers: Vec::new(),
            process: None,
            starts: 0,
            objects: Vec::new(),
        };
        end.objects = vec![end.local_cluster(), end.slot_keys(), end.tunnel_gateway()];
        Ok(end)
    }

    pub(crate) fn id(&self) -> &str {
        self.cluster.name()
    }

    pub(crate) fn public_keys(&self) -> Vec<[u8; 32]> {
        self.secrets.iter().map(|secret| PublicKey::from(secret).to_bytes()).collect()
    }

    /// Its address inside the tunnels.
    pub(crate) fn control_address(&self) -> Result<std::net::Ipv6Addr> {
        control_address(&self.identity.public().control_prefix(), 0).context("a control address")
    }

    fn local_cluster(&self) -> Value {
        let ranges = self.cluster.ranges();
        json!({
            "apiVersion": "tombolo.dev/v1alpha1", "kind": "LocalCluster", "metadata": {"name": "local"},
            "spec": {
                "clusterId": self.id(), "clusterSetId": "test",
                "podPrefixes": ranges.pods().both(), "infrastructurePrefixes": ranges.infrastructure().both(),
                "podReachability": "Open",
                "gateways": {"port": PORT, "lanes": self.secrets.len(), "slots": 1, "mtu": 1420},
            },
            "status": {"identityKey": self.identity.public()},
        })
    }

    fn slot_keys(&self) -> Value {
        let keys = self.secrets.iter().enumerate();
        let data = keys.map(|(lane, secret)| (format!("lane-{lane}"), json!(base64(secret.as_bytes()))));
        json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "gateway-slot-0", "namespace": "tombolo-system"},
            "data": data.collect::<serde_json::Map<_, _>>(),
        })
    }

    fn tunnel_gateway(&self) -> Value {
        json!({
            "apiVersion": "tombolo.dev/v1alpha1", "kind": "TunnelGateway",
            "metadata": {"name": "gateway-0", "namespace": "tombolo-system"}, "spec": {"slot": 0},
        })
    }

    /// What the other clusters know of this one.
    pub(crate) fn record(&self, endpoints: &[SocketAddr]) -> SignedRecord {
        self.record_of_protocol(endpoints, 1)
    }

    /// The record of a WireGuard end that is no gateway of ours.
    pub(crate) fn plain_record(&self, endpoints: &[SocketAddr]) -> SignedRecord {
        self.record_of_protocol(endpoints, 0)
    }

    fn record_of_protocol(&self, endpoints: &[SocketAddr], protocol: u16) -> SignedRecord {
        let lanes = self.public_keys().into_iter().zip(PORT..);
        let ranges = self.cluster.ranges();
        let prefixes = [ranges.pods(), ranges.infrastructure()].into_iter().flat_map(|ranges| ranges.both());
        self.identity.sign_record(&MemberRecord {
            cluster_set_id: ClusterId::new("test").expect("an id"),
            cluster_id: ClusterId::new(self.id()).expect("an id"),
            identity_keys: vec![self.identity.public()],
            successions: vec![],
            epoch: "one".into(),
            generation: 1,
            control_prefix: self.identity.public().control_prefix(),
            slots: vec![SlotRecord {
                slot: 0,
                endpoints: endpoints.iter().map(ToString::to_string).collect(),
                lanes: lanes.map(|(key, port)| LaneRecord { key: TunnelKey(key), next_key: None, port }).collect(),
            }],
            prefixes: prefixes.map(api::Prefix::truncating).collect(),
            labels: Default::default(),
            protocol: (protocol, protocol),
            state: MemberState::Active,
        })
    }

    /// Trusts another cluster, to be dialled at these addresses.
    pub(crate) fn trust(&mut self, other: &Self, endpoints: &[SocketAddr]) -> Result<()> {
        self.trust_record(other.id(), &other.record(endpoints))
    }

    pub(crate) fn trust_record(&mut self, id: &str, record: &SignedRecord) -> Result<()> {
        self.put(json!({
            "apiVersion": "tombolo.dev/v1alpha1", "kind": "ClusterPeer", "metadata": {"name": id},
            "spec": {"identityKeys": [record.key], "record": record.to_base64()},
        }))
    }

    /// Stores an object, now and at every start.
    pub(crate) fn put(&mut self, object: Value) -> Result<()> {
        let name = |object: &Value| (object["kind"].clone(), object["metadata"].clone()["name"].clone());
        self.objects.retain(|known| name(known) != name(&object));
        self.objects.push(object.clone());
        if self.process.is_some() {
            self.request(&json!({ "put": object }))?;
        }
        Ok(())
    }

    /// Lets nothing in but what is exported.
    pub(crate) fn close(&mut self) -> Result<()> {
        let mut object = self.local_cluster();
        object["spec"]["podReachability"] = json!("Exported");
        self.put(object)
    }

    /// Believes that this range is its own as well.
    pub(crate) fn claim_prefix(&mut self, prefix: &str) -> Result<()> {
        let mut object = self.local_cluster();
        object["spec"]["podPrefixes"].as_array_mut().context("a list")?.push(json!(prefix));
        self.put(object)
    }

    /// The largest inner packet, in bytes.
    pub(crate) fn set_mtu(&mut self, mtu: u16) -> Result<()> {
        let mut object = self.local_cluster();
        object["spec"]["gateways"]["mtu"] = json!(mtu);
        self.put(object)
    }

    pub(crate) fn read(&self, kind: &str, name: &str) -> Result<Value> {
        self.request(&json!({"read": {"kind": kind, "namespace": "tombolo-system", "name": name}}))
    }

    pub(crate) fn block(&mut self, peer: &str) -> Result<()> {
        let known =
            self.objects.iter().find(|known| known["kind"] == "ClusterPeer" && known["metadata"]["name"] == peer);
        let mut object = known.context("no such peer")?.clone();
        object["spec"]["state"] = json!("Blocked");
        self.put(object)
    }

    pub(crate) fn remove(&mut self, object: &Value) -> Result<()> {
        let (kind, meta) = (&object["kind"], &object["metadata"]);
        self.objects.retain(|known| known["kind"] != *kind || known["metadata"]["name"] != meta["name"]);
        self.request(&json!({"remove": {"kind": kind, "namespace": meta["namespace"], "name": meta["name"]}}))?;
        Ok(())
    }

    /// Lets it leave in good order.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.request(&json!({"stop": true}))?;
        self.process = None;
        Ok(())
    }

    /// Starts the process and waits until it forwards.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.start_with(false)
    }

    /// Starts it while its controller is away: what it knew is read from its cache, and nothing can be written.
    pub(crate) fn start_cut_off(&mut self) -> Result<()> {
        self.start_with(true)
    }

    fn start_with(&mut self, cut_off: bool) -> Result<()> {
        self.starts += 1;
        let folder = self.node.run_folder().join("gateway");
        std::fs::create_dir_all(&folder)?;
        let mut command = Command::new(program()?);
        // The node sees its run folder as /run.
        command.args(["/run/gateway/socket", "/run/gateway/state", self.node.node_name()]).args(&self.controllers);
        let process = self.node.start(&format!("gateway-{}", self.starts), command)?;
        process.wait_for_line("gateway_alone listens", LIMIT)?;
        self.process = Some(process);
        self.request(&json!({ "cutOff": cut_off }))?;
        for object in self.objects.clone() {
            self.request(&json!({ "put": object }))?;
        }
        self.wait_for("forwarding", |end| Ok(end.request(&json!({"ready": true}))? == json!([])))
    }

    pub(crate) fn process(&self) -> Result<&Process> {
        self.process.as_ref().context("the gateway was not started")
    }

    pub(crate) fn kill(&mut self) -> Result<()> {
        let process = self.process.take().context("the gateway was not started")?;
        process.kill()?;
        process.wait_for_exit(LIMIT)?;
        Ok(())
    }

    /// Sends what is for other clusters into the tunnel, as the node agent does.
    pub(crate) fn route_to(&self, others: &[&Cluster]) -> Result<()> {
        self.route_over("tombolo0", others)
    }

    /// Sends packets for one address with this source into the tunnel.
    pub(crate) fn route_from(&self, source: std::net::Ipv4Addr, target: std::net::Ipv4Addr) -> Result<()> {
        self.node.links("routing from a foreign address", async |links| {
            links.replace_route(Ipv4Route::from_addr(target, 32).dev("tombolo0").prefsrc(source)).await
        })
    }

    pub(crate) fn route_over(&self, device: &str, others: &[&Cluster]) -> Result<()> {
        let host = &self.node;
        let own = host.infrastructure();
        for other in others {
            let ranges = other.ranges();
            for range in [ranges.pods(), ranges.infrastructure()] {
                host.links("routing into the tunnel", async |links| {
                    let v4 = Ipv4Route::from_addr(range.v4.network(), range.v4.prefix_len());
                    links.replace_route(v4.dev(device).prefsrc(own.v4)).await?;
                    let v6 = Ipv6Route::from_addr(range.v6.network(), range.v6.prefix_len());
                    links.replace_route(v6.dev(device).prefsrc(own.v6)).await
                })?;
            }
        }
        Ok(())
    }

    /// Gives the node its infrastructure addresses, as the node agent does.
    pub(crate) fn add_infrastructure_addresses(&self) -> Result<()> {
        let own = self.node.infrastructure();
        self.node.links("adding infrastructure addresses", async |links| {
            links.add_address(nlink::netlink::addr::Ipv4Address::new("lo", own.v4, 32)).await?;
            links.add_address(nlink::netlink::addr::Ipv6Address::new("lo", own.v6, 128).nodad()).await
        })
    }

    pub(crate) fn status(&self) -> Result<Value> {
        self.ask("status")
    }

    pub(crate) fn ask(&self, question: &str) -> Result<Value> {
        self.request(&json!({ "ask": question }))
    }

    /// How often a refusal was counted, by the metric `tombolo_refusals_total` or `tombolo_gateway_drops_total`.
    pub(crate) fn counted(&self, reason: &str) -> Result<u64> {
        let metrics = self.request(&json!({"metrics": true}))?;
        let text = metrics.as_str().context("metrics are text")?;
        let label = format!("reason=\"{reason}\"");
        let values = text.lines().filter(|line| line.contains(&label)).filter_map(|line| line.rsplit_once(' '));
        Ok(values.filter_map(|(_, value)| value.parse::<u64>().ok()).sum())
    }

    /// The path to a peer, `Up` or not.
    pub(crate) fn wait_until(&self, peer: &str, state: &str) -> Result<()> {
        self.wait_for(&format!("{peer} to be {state}"), |end| {
            let status = end.status()?;
            let peers = status["peers"].as_array().context("a status has peers")?;
            Ok(peers.iter().any(|path| path["peer"] == peer && path["reachability"] == state))
        })
    }

    pub(crate) fn wait_for(&self, what: &str, mut holds: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        let started = Instant::now();
        while !holds(self)? {
            if started.elapsed() > LIMIT {
                bail!("{}: waited {LIMIT:?} for {what}; status: {:#}", self.id(), self.status().unwrap_or_default());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    pub(crate) fn request(&self, request: &Value) -> Result<Value> {
        let mut stream = UnixStream::connect(self.socket()).context("asking the gateway")?;
        stream.set_read_timeout(Some(LIMIT))?;
        writeln!(stream, "{request}")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        ensure!(!line.is_empty(), "{}: the gateway ended instead of answering {request}", self.id());
        Ok(serde_json::from_str(&line)?)
    }

    fn socket(&self) -> PathBuf {
        self.node.run_folder().join("gateway").join("socket")
    }
}

/// The example that Cargo builds beside the tests: target/<profile>/examples, this is in target/<profile>/deps.
fn program() -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    let profile = this.ancestors().nth(2).context("this program has no folder")?;
    let program = profile.join("examples").join("gateway_alone");
    ensure!(program.is_file(), "{} is not built; run `cargo build -p gateway --examples`", program.display());
    Ok(program)
}

/// As a Secret holds bytes.
pub(crate) fn base64(bytes: &[u8]) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes)
}
