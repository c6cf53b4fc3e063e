//! [`Member`]: a cluster with one gateway, as the objects its controller would hand out.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use api::health::message::MasterKey;
use api::keys::TunnelKey;
use api::member_record::{LaneRecord, MemberRecord, MemberState, SignedRecord, SlotRecord};
use api::{ClusterId, Prefix, names};
use base64::Engine as _;
use identity::Identity;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use x25519_dalek::{PublicKey, StaticSecret};

/// Gateways in one namespace need a port of their own each: this and their number.
pub(crate) const HEALTH_PORT: u16 = 20_000;

/// What one gateway is started with.
#[derive(Serialize, Deserialize)]
pub(crate) struct Orders {
    pub(crate) node: String,
    /// Lane i's device is this and i; at most 13 bytes, for Linux allows 15.
    pub(crate) device_prefix: String,
    pub(crate) port: u16,
    pub(crate) health_port: u16,
    pub(crate) objects: Vec<Value>,
}

pub(crate) struct Member {
    pub(crate) name: String,
    number: u16,
    lanes: u8,
    /// UDP port of its first lane.
    port: u16,
    identity: Identity,
    secrets: Vec<StaticSecret>,
    record: SignedRecord,
}

impl Member {
    /// `number` is unique in the world; `address` is that of the host it will run on.
    pub(crate) fn new(number: u16, lanes: u8, port: u16, address: std::net::IpAddr) -> Result<Self> {
        let name = format!("member-{number}");
        let identity = Identity::generate()?;
        let mut secrets = Vec::new();
        for _ in 0..lanes {
            let mut bytes = [0; 32];
            getrandom::fill(&mut bytes)?;
            secrets.push(StaticSecret::from(bytes));
        }
        let keys = secrets.iter().map(|secret| TunnelKey(PublicKey::from(secret).to_bytes()));
        let record = identity.sign_record(&MemberRecord {
            cluster_set_id: ClusterId::new("test")?,
            cluster_id: ClusterId::new(&name)?,
            identity_keys: vec![identity.public()],
            successions: vec![],
            epoch: "one".into(),
            generation: 1,
            control_prefix: identity.public().control_prefix(),
            slots: vec![SlotRecord {
                slot: 0,
                endpoints: vec![SocketAddr::new(address, port).to_string()],
                lanes: keys.zip(port..).map(|(key, port)| LaneRecord { key, next_key: None, port }).collect(),
            }],
            prefixes: vec![prefix(number).parse::<Prefix>().context("a prefix of this bench")?],
            labels: Default::default(),
            protocol: (1, 1),
            state: MemberState::Active,
        });
        Ok(Self { name, number, lanes, port, identity, secrets, record })
    }

    /// Its gateway's orders, with these peers.
    pub(crate) fn orders<'a>(&self, peers: impl IntoIterator<Item = &'a Self>) -> Orders {
        let mut objects = vec![self.local_cluster(), self.slot_keys(), probe_master()];
        objects.push(json!({
            "apiVersion": "tombolo.dev/v1alpha1", "kind": "TunnelGateway",
            "metadata": {"name": "gateway-0", "namespace": "tombolo-system"}, "spec": {"slot": 0},
        }));
        objects.extend(peers.into_iter().map(Self::as_peer));
        Orders {
            node: self.name.clone(),
            device_prefix: format!("t{}-", self.number),
            port: self.port,
            health_port: HEALTH_PORT + self.number,
            objects,
        }
    }

    fn as_peer(&self) -> Value {
        json!({
            "apiVersion": "tombolo.dev/v1alpha1", "kind": "ClusterPeer", "metadata": {"name": self.name},
            "spec": {"identityKeys": [self.record.key], "record": self.record.to_base64()},
        })
    }

    fn local_cluster(&self) -> Value {
        json!({
            "apiVersion": "tombolo.dev/v1alpha1", "kind": "LocalCluster", "metadata": {"name": "local"},
            "spec": {
                "clusterId": self.name, "clusterSetId": "test", "podPrefixes": [prefix(self.number)],
                "gateways": {"port": self.port, "lanes": self.lanes, "slots": 1, "mtu": 1420},
            },
            "status": {"identityKey": self.identity.public()},
        })
    }

    fn slot_keys(&self) -> Value {
        let base64 = |secret: &StaticSecret| base64::engine::general_purpose::STANDARD.encode(secret.as_bytes());
        let keys =
            self.secrets.iter().enumerate().map(|(lane, secret)| (format!("lane-{lane}"), json!(base64(secret))));
        json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "gateway-slot-0", "namespace": "tombolo-system"},
            "data": keys.collect::<serde_json::Map<_, _>>(),
        })
    }
}

/// A range of its own for each member.
fn prefix(number: u16) -> String {
    format!("fd77:0:{number:x}::/48")
}

/// The key that agents' keys are made of, the same in every cluster of this bench.
pub(crate) const MASTER: MasterKey = MasterKey { id: 1, secret: [7; 32] };

fn probe_master() -> Value {
    let text = base64::engine::general_purpose::STANDARD.encode(MASTER.to_text());
    json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": names::PROBE_MASTER_SECRET, "namespace": "tombolo-system"},
        "data": {"current": text},
    })
}
