//! Trouble on the way: silence, loss, address translation. The kernel here has no netem, so delay is left to the
//! simulations of the thinking crates.
//!
//! What both ends can see (a pulled cable, an MTU, a rate) belongs to [`crate::link::Port`].

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Result, ensure};
use nlink::netlink::nftables::{
    BaseChain, ByteorderOp, Chain, CmpOp, Expr, Family, FilterHook, NatHook, NatStatement, NumgenKind, Policy,
    Priority, Register, Rule,
};
use nlink::netlink::{Connection, Netfilter, Nftables};

use crate::cluster::{Cluster, UPLINK};
use crate::host::Host;
use crate::node::Node;
use crate::world::World;

/// The table of obstacles, one for routed and one for switched packets.
const OBSTACLES: &str = "world_obstacles";
const NAT: &str = "world_nat";
/// The table of routers that let no ICMP in.
const ICMP_HOLE: &str = "world_icmp_hole";
/// The table of routers that lose one UDP port.
const PORT_HOLE: &str = "world_port_hole";
/// The table of nodes that do not reach some clusters.
const PARTITION: &str = "world_partition";
/// Before every other chain, so that nothing else counts a packet which the wire has lost.
const FIRST: Priority = Priority::Custom(-500);
/// Loss is given in thousandths.
const WHOLE: u32 = 1000;

/// A place in a router where packets get lost.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Obstacle {
    /// Whether the packets pass from port to port of a bridge, or are routed.
    switched: bool,
    from: Option<String>,
    to: Option<String>,
    lost_in_thousand: u32,
}

/// The beginning of a range and its length.
type Place = (IpAddr, u8);

/// The obstacles of one router.
pub(crate) type Obstacles = BTreeSet<Obstacle>;

impl World {
    /// Loses every packet between two clusters, silently, both ways.
    pub fn cut(&self, one: &Cluster, other: &Cluster) -> Result<()> {
        self.cut_one_way(one, other)?;
        self.cut_one_way(other, one)
    }

    /// Loses every packet from one cluster to another, silently.
    pub fn cut_one_way(&self, from: &Cluster, to: &Cluster) -> Result<()> {
        self.lose(from, to, 100.0)
    }

    /// Loses this part of the packets from one cluster to another, at random. `percent` is 0 to 100; what was set for
    /// this way before is replaced.
    pub fn lose(&self, from: &Cluster, to: &Cluster, percent: f64) -> Result<()> {
        ensure!((0.0..=100.0).contains(&percent), "loss is 0 to 100 percent, not {percent}");
        let lost_in_thousand = (percent * 10.0).round() as u32;
        let (from, to) = (Some(from.name().to_owned()), Some(to.name().to_owned()));
        change(self.internet(), |obstacles| {
            obstacles.retain(|known| (&known.from, &known.to) != (&from, &to));
            obstacles.insert(Obstacle { switched: false, from, to, lost_in_thousand });
        })
    }

    /// Takes away what [`Self::cut`] and [`Self::lose`] put between two clusters, both ways.
    pub fn mend(&self, one: &Cluster, other: &Cluster) -> Result<()> {
        let pair = [one.name(), other.name()];
        let among = |place: &Option<String>| place.as_deref().is_some_and(|name| pair.contains(&name));
        change(self.internet(), |obstacles| obstacles.retain(|known| !(among(&known.from) && among(&known.to))))
    }
}

impl Cluster {
    /// Loses every packet between this cluster and all others, silently.
    pub fn cut_off(&self) -> Result<()> {
        change(self.internet_port().host(), |obstacles| {
            let name = || Some(self.name().to_owned());
            obstacles.insert(Obstacle { switched: false, from: name(), to: None, lost_in_thousand: WHOLE });
            obstacles.insert(Obstacle { switched: false, from: None, to: name(), lost_in_thousand: WHOLE });
        })
    }

    /// Undoes [`Self::cut_off`].
    pub fn reconnect(&self) -> Result<()> {
        change(self.internet_port().host(), |obstacles| {
            let own = |place: &Option<String>| place.as_deref() == Some(self.name());
            obstacles.retain(|known| {
                !((own(&known.from) && known.to.is_none()) || (own(&known.to) && known.from.is_none()))
            });
        })
    }

    /// Puts the cluster behind address translation: seen from the internet, all of it is the router, on random ports,
    /// and only answers come in.
    pub fn hide_behind_nat(&self) -> Result<()> {
        let translate = chain(NAT, Family::Inet, "out", BaseChain::nat(NatHook::Postrouting, Priority::SrcNat))?;
        let guard = chain(NAT, Family::Inet, "in", BaseChain::filter(FilterHook::Forward, Priority::Filter))?;
        let new = nlink::netlink::nftables::CtState::NEW;
        let rules = vec![
            Rule::new(NAT, "out").match_oif(UPLINK).nat(NatStatement::masquerade().fully_random()),
            Rule::new(NAT, "in").match_iif(UPLINK).match_ct_state(new).drop(),
        ];
        replace_table(self.router(), NAT, Family::Inet, vec![translate, guard], rules)
    }

    /// Loses all ICMP that comes from the internet, as too many firewalls do, and what the router itself says of packets
    /// that do not get out: nobody inside is told what is too large.
    pub fn lose_icmp_from_internet(&self) -> Result<()> {
        const ICMP: u8 = 1;
        const ICMPV6: u8 = 58;
        const UNREACHABLE: u8 = 3;
        const PACKET_TOO_BIG: u8 = 2;
        let passing = chain(ICMP_HOLE, Family::Inet, "passing", BaseChain::filter(FilterHook::Forward, FIRST))?;
        let own = chain(ICMP_HOLE, Family::Inet, "own", BaseChain::filter(FilterHook::Output, FIRST))?;
        let foreign = |protocol| Rule::new(ICMP_HOLE, "passing").match_iif(UPLINK).match_l4proto(protocol).counter();
        let rules = vec![
            foreign(ICMP).drop(),
            foreign(ICMPV6).drop(),
            Rule::new(ICMP_HOLE, "own").match_icmp_type(UNREACHABLE).counter().drop(),
            Rule::new(ICMP_HOLE, "own").match_icmpv6_type(PACKET_TOO_BIG).counter().drop(),
        ];
        replace_table(self.router(), ICMP_HOLE, Family::Inet, vec![passing, own], rules)
    }

    /// Loses UDP to this port both ways, as a firewall does that was opened for the others only.
    pub fn lose_udp_port(&self, port: u16) -> Result<()> {
        const UDP: u8 = 17;
        let passing = chain(PORT_HOLE, Family::Inet, "passing", BaseChain::filter(FilterHook::Forward, FIRST))?;
        let lost = Rule::new(PORT_HOLE, "passing").match_l4proto(UDP).match_udp_dport(port).counter().drop();
        replace_table(self.router(), PORT_HOLE, Family::Inet, vec![passing], vec![lost])
    }

    /// Undoes [`Self::lose_udp_port`].
    pub fn mend_udp_port(&self) -> Result<()> {
        replace_table(self.router(), PORT_HOLE, Family::Inet, Vec::new(), Vec::new())
    }

    /// Makes the translation forget its bindings, as a router does that was restarted: each flow's next packet comes
    /// from another port.
    pub fn rebind_nat(&self) -> Result<()> {
        self.router()
            .netlink("forgetting translations", async || Connection::<Netfilter>::new()?.flush_conntrack_all().await)
    }
}

impl Node {
    /// Loses what this node sends into its LAN, silently: others do not hear it, it hears them.
    pub fn mute(&self) -> Result<()> {
        self.obstruct(|port| Obstacle { switched: true, from: Some(port), to: None, lost_in_thousand: WHOLE })
    }

    /// Loses what is sent to this node, silently.
    pub fn deafen(&self) -> Result<()> {
        self.obstruct(|port| Obstacle { switched: true, from: None, to: Some(port), lost_in_thousand: WHOLE })
    }

    /// Both: nothing comes or goes, and the node's link stays up.
    pub fn cut_off(&self) -> Result<()> {
        self.mute()?;
        self.deafen()
    }

    /// Loses every packet between this node and another cluster, silently; it reaches its own cluster and all others.
    /// `router` is that of its own cluster.
    pub fn cut_off_from(&self, other: &Cluster, router: &Host) -> Result<()> {
        let (own, theirs) = (self.addresses(), other.ranges().underlay());
        let between = |one: Place, another: Place| {
            let rule = Rule::new(PARTITION, "passing");
            let rule = match one {
                (IpAddr::V4(address), length) => rule.match_saddr_v4(address, length),
                (IpAddr::V6(address), length) => rule.match_saddr_v6(address, length),
            };
            match another {
                (IpAddr::V4(address), length) => rule.match_daddr_v4(address, length),
                (IpAddr::V6(address), length) => rule.match_daddr_v6(address, length),
            }
        };
        let mut rules = Vec::new();
        for (own, theirs) in own.both().into_iter().zip(theirs.both()) {
            let own = (own, if own.is_ipv4() { 32 } else { 128 });
            let theirs = (theirs.network(), theirs.prefix_len());
            rules.extend([between(own, theirs).counter().drop(), between(theirs, own).counter().drop()]);
        }
        let passing = chain(PARTITION, Family::Inet, "passing", BaseChain::filter(FilterHook::Forward, FIRST))?;
        replace_table(router, PARTITION, Family::Inet, vec![passing], rules)
    }

    /// Undoes [`Self::cut_off_from`].
    pub fn mend_all(&self, router: &Host) -> Result<()> {
        replace_table(router, PARTITION, Family::Inet, Vec::new(), Vec::new())
    }

    /// Undoes [`Self::mute`], [`Self::deafen`] and [`Self::cut_off`].
    pub fn reconnect(&self) -> Result<()> {
        let port = Some(self.router_port().name().to_owned());
        change(self.router_port().host(), |obstacles| {
            obstacles.retain(|known| !(known.switched && (known.from == port || known.to == port)));
        })
    }

    fn obstruct(&self, obstacle: impl FnOnce(String) -> Obstacle) -> Result<()> {
        let obstacle = obstacle(self.router_port().name().to_owned());
        change(self.router_port().host(), |obstacles| {
            obstacles.insert(obstacle);
        })
    }
}

fn change(router: &Host, change: impl FnOnce(&mut Obstacles)) -> Result<()> {
    let mut obstacles = router.obstacles();
    change(&mut obstacles);
    for (family, switched) in [(Family::Inet, false), (Family::Bridge, true)] {
        let here: Vec<&Obstacle> = obstacles.iter().filter(|obstacle| obstacle.switched == switched).collect();
        // A bridge sees where a packet goes only at the end, where it came from all the way.
        let hook = if switched { FilterHook::Postrouting } else { FilterHook::Forward };
        let mut chains = vec![chain(OBSTACLES, family, "leaving", BaseChain::filter(hook, FIRST))?];
        if switched {
            chains.push(chain(OBSTACLES, family, "coming", BaseChain::filter(FilterHook::Prerouting, FIRST))?);
        }
        let rules = here.iter().map(|obstacle| rule(obstacle).family(family)).collect();
        replace_table(router, OBSTACLES, family, chains, rules)?;
    }
    Ok(())
}

fn rule(obstacle: &Obstacle) -> Rule {
    let comes_from_port = obstacle.switched && obstacle.from.is_some();
    let mut rule = Rule::new(OBSTACLES, if comes_from_port { "coming" } else { "leaving" });
    if let Some(from) = &obstacle.from {
        rule = rule.match_iif(from);
    }
    if let Some(to) = &obstacle.to {
        rule = rule.match_oif(to);
    }
    if obstacle.lost_in_thousand < WHOLE {
        let register = Register::R0;
        let random = Expr::Numgen { dreg: register, kind: NumgenKind::Random, modulus: WHOLE, offset: 0 };
        // Comparisons go byte by byte, so the number must be in network order.
        let order = Expr::Byteorder { sreg: register, dreg: register, op: ByteorderOp::Hton, len: 4, size: 4 };
        let below = Expr::Cmp { sreg: register, op: CmpOp::Lt, data: obstacle.lost_in_thousand.to_be_bytes().to_vec() };
        rule = rule.expr(random).expr(order).expr(below);
    }
    rule.counter().drop()
}

pub(crate) fn chain(table: &str, family: Family, name: &str, base: BaseChain) -> Result<Chain> {
    Ok(Chain::new(table, name)?.family(family).base(base.policy(Policy::Accept)))
}

/// Puts a table of these chains and rules in the place of the one of that name, at once.
pub(crate) fn replace_table(
    host: &Host,
    table: &str,
    family: Family,
    chains: Vec<Chain>,
    rules: Vec<Rule>,
) -> Result<()> {
    host.rules(&format!("setting nftables table {table}"), async |connection: &Connection<Nftables>| {
        let known = connection.list_tables_in(family).await?.iter().any(|known| known.name == table);
        let mut transaction = connection.transaction();
        if known {
            transaction = transaction.del_table(table, family);
        }
        transaction = transaction.add_table(table, family);
        for chain in chains {
            transaction = transaction.add_chain(chain);
        }
        for rule in rules {
            transaction = transaction.add_rule(rule);
        }
        transaction.commit(connection).await
    })
}
