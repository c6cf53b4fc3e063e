//! What nodes of real clusters already have when Tombolo comes: kube-proxy's and the network plugin's rules.

use anyhow::Result;
use nlink::netlink::nftables::{BaseChain, Chain, CtState, Family, FilterHook, NatHook, Policy, Priority, Rule};

use crate::addresses::Ranges;
use crate::impair::{chain, replace_table};
use crate::node::{Node, POD_BRIDGE};

const FIREWALL: &str = "world_firewall";
const INPUT_FIREWALL: &str = "world_input_firewall";
const MASQUERADE: &str = "world_masquerade";

const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;

/// A port that a firewall lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    Tcp(u16),
    Udp(u16),
}

impl Node {
    /// Forwards only what a node of a hardened cluster forwards: packets of invalid connections are dropped as
    /// kube-proxy drops them, and beyond that only what goes to or comes from the cluster's own pods, and from the
    /// addresses its hosts have towards other clusters, passes.
    pub fn add_forward_firewall(&self) -> Result<()> {
        let base = BaseChain::filter(FilterHook::Forward, Priority::Filter).policy(Policy::Drop);
        let forward = Chain::new(FIREWALL, "forward")?.family(Family::Inet).base(base);
        let new_rule = || Rule::new(FIREWALL, "forward");
        let mut rules = vec![
            new_rule().match_ct_state(CtState::INVALID).counter().drop(),
            new_rule().match_ct_state(CtState::ESTABLISHED | CtState::RELATED).accept(),
        ];
        // docs/plain-hosts.md asks for both; a gateway forwards what other hosts send.
        let infrastructure = self.cluster_ranges().infrastructure();
        for range in self.cluster_pods().both().into_iter().chain(infrastructure.both()) {
            rules.push(new_rule().match_saddr(range.network(), range.prefix_len()).accept());
            rules.push(new_rule().match_daddr(range.network(), range.prefix_len()).accept());
        }
        replace_table(self, FIREWALL, Family::Inet, vec![forward], rules)
    }

    /// Lets in only what a firewall must (ICMP, established connections, the host's own), and these ports.
    pub fn add_input_firewall(&self, ports: &[Port]) -> Result<()> {
        let base = BaseChain::filter(FilterHook::Input, Priority::Filter).policy(Policy::Drop);
        let input = Chain::new(INPUT_FIREWALL, "input")?.family(Family::Inet).base(base);
        let new_rule = || Rule::new(INPUT_FIREWALL, "input");
        let mut rules = vec![
            new_rule().match_ct_state(CtState::ESTABLISHED | CtState::RELATED).accept(),
            new_rule().match_iif("lo").accept(),
            new_rule().match_l4proto(ICMP).accept(),
            new_rule().match_l4proto(ICMP_V6).accept(),
        ];
        rules.extend(ports.iter().map(|port| match port {
            Port::Tcp(port) => new_rule().match_tcp_dport(*port).accept(),
            Port::Udp(port) => new_rule().match_udp_dport(*port).accept(),
        }));
        replace_table(self, INPUT_FIREWALL, Family::Inet, vec![input], rules)
    }

    /// Only the rule of kube-proxy that drops packets of connections which connection tracking has not seen begin:
    /// what breaks paths that go and come by different gateways.
    pub fn drop_invalid_connections(&self) -> Result<()> {
        let base = BaseChain::filter(FilterHook::Forward, Priority::Filter);
        let forward = chain(FIREWALL, Family::Inet, "forward", base)?;
        let rule = Rule::new(FIREWALL, "forward").match_ct_state(CtState::INVALID).counter().drop();
        replace_table(self, FIREWALL, Family::Inet, vec![forward], vec![rule])
    }

    /// Gives packets of pods the node's address when they leave the cluster, as most network plugins do.
    pub fn add_plugin_masquerade(&self) -> Result<()> {
        let base = BaseChain::nat(NatHook::Postrouting, Priority::SrcNat);
        let leaving = chain(MASQUERADE, Family::Inet, "leaving", base)?;
        let rules = self.cluster_pods().both().map(|range| {
            Rule::new(MASQUERADE, "leaving")
                .match_oif_not(POD_BRIDGE)
                .match_saddr(range.network(), range.prefix_len())
                .match_daddr_not(range.network(), range.prefix_len())
                .masquerade()
        });
        replace_table(self, MASQUERADE, Family::Inet, vec![leaving], rules.into())
    }

    fn cluster_pods(&self) -> Ranges {
        self.cluster_ranges().pods()
    }
}
