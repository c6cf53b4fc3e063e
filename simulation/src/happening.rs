//! [`Happening`]: one thing of a schedule: what an operator does, or what goes wrong.

use std::fmt;

use crate::follower::Disk;
use crate::network::Weather;
use crate::site::{self, NAMES, Name};

/// One part of a cluster, as a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Controller,
    /// By slot.
    Gateway(u16),
    /// By host.
    Node(usize),
    Dns,
}

/// What an operator orders by command; it holds until it is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// `peers drain`: this cluster gives a peer no new connections.
    DrainPeer(usize),
    /// `peers block`: it is cut off.
    BlockPeer(usize),
    /// `drain`: no member gives this cluster new connections.
    DrainCluster,
    /// `drain gateway`: by slot.
    DrainGateway(u16),
    /// `drain node`: by host.
    DrainNode(usize),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// Nothing gets from one cluster to another.
    Cut {
        from: usize,
        to: usize,
    },
    /// Nothing gets to or from a cluster.
    Isolate {
        cluster: usize,
    },
    Weather(Weather),
    /// The gateway's datagrams leave from, and are answered at, another address.
    Move {
        cluster: usize,
        slot: u16,
    },
    /// A firewall shuts the port of one lane of a gateway, or opens it. That is no trouble that ends by itself: another
    /// lane goes on.
    Lane {
        cluster: usize,
        slot: u16,
        lane: u16,
        open: bool,
    },
    /// SIGKILL, and a start a moment later.
    Restart {
        cluster: usize,
        part: Part,
        disk: Disk,
    },
    /// SIGKILL, until the trouble is over.
    Kill {
        cluster: usize,
        part: Part,
    },
    /// The machine of the controller is suspended in the middle of a write: another replica takes its place. It wakes, and
    /// goes on beside the other for a while.
    Sleep {
        cluster: usize,
        seconds: u64,
    },
    /// A host's cable is pulled, until the trouble is over.
    Unplug {
        cluster: usize,
        host: usize,
    },
    /// The wall clock is set, by so many seconds.
    SetClock {
        cluster: usize,
        by: i64,
    },
    /// Nothing can be written to the store, until the trouble is over.
    StoreAway {
        cluster: usize,
    },
    /// Every disk of a cluster is backed up, for those who will start with an old one.
    BackUp {
        cluster: usize,
    },
    Export {
        cluster: usize,
        service: Name,
    },
    Unexport {
        cluster: usize,
        service: Name,
    },
    /// An endpoint comes, changes or goes (`ready: None`).
    Endpoint {
        cluster: usize,
        service: Name,
        host: usize,
        place: u8,
        ready: Option<bool>,
    },
    /// The clusters of a service in the order they are to be used; none: the policy is deleted.
    Policy {
        cluster: usize,
        service: Name,
        order: Vec<usize>,
    },
    /// The manifest of `cluster` says that `peer` is used no more, or again.
    Drain {
        cluster: usize,
        peer: usize,
        drained: bool,
    },
    /// The operator of `cluster` orders something, or takes it back; again and again until the controller has done it.
    Order {
        cluster: usize,
        order: Order,
        undo: bool,
    },
    /// Whether `cluster` takes the namespace `vault` from `peer`.
    Accept {
        cluster: usize,
        peer: usize,
        vault: bool,
    },
    /// All trouble is over.
    Calm,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Controller => f.write_str("controller"),
            Self::Gateway(slot) => write!(f, "gateway {slot}"),
            Self::Node(host) => write!(f, "node agent {}", host + 1),
            Self::Dns => f.write_str("DNS server"),
        }
    }
}

impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut { from, to } => write!(f, "nothing gets from {} to {}", NAMES[*from], NAMES[*to]),
            Self::Isolate { cluster } => write!(f, "{} is cut off from the world", NAMES[*cluster]),
            Self::Weather(Weather { loss_permille, duplicate_permille, delay, jitter }) => write!(
                f,
                "of 1000 datagrams {loss_permille} are lost and {duplicate_permille} doubled, the others take {delay} to {} ms",
                delay + jitter
            ),
            Self::Move { cluster, slot } => write!(f, "{}'s gateway {slot} gets another address", NAMES[*cluster]),
            Self::Lane { cluster, slot, lane, open } => {
                let what = if *open { "is open" } else { "is shut" };
                write!(f, "the port of lane {lane} of {}'s gateway {slot} {what}", NAMES[*cluster])
            }
            Self::Restart { cluster, part, disk } => {
                let disk = match disk {
                    Disk::Kept => "its disk",
                    Disk::Old => "an old disk",
                    Disk::Empty => "an empty disk",
                };
                write!(f, "{}'s {part} is killed and starts again with {disk}", NAMES[*cluster])
            }
            Self::Kill { cluster, part } => write!(f, "{}'s {part} is killed", NAMES[*cluster]),
            Self::Sleep { cluster, seconds } => {
                write!(f, "{}'s controller falls asleep at its next write, for {seconds} s", NAMES[*cluster])
            }
            Self::Unplug { cluster, host } => write!(f, "{}'s cable is pulled", site::host_name(*cluster, *host)),
            Self::SetClock { cluster, by } => write!(f, "{}'s wall clock is set by {by} s", NAMES[*cluster]),
            Self::StoreAway { cluster } => write!(f, "{}'s store takes no writes", NAMES[*cluster]),
            Self::BackUp { cluster } => write!(f, "{}'s disks are backed up", NAMES[*cluster]),
            Self::Export { cluster, service } => write!(f, "{} exports {service}", NAMES[*cluster]),
            Self::Unexport { cluster, service } => write!(f, "{} exports {service} no more", NAMES[*cluster]),
            Self::Endpoint { cluster, service, host, place, ready } => {
                let what = match ready {
                    Some(true) => "is ready",
                    Some(false) => "is not ready",
                    None => "is gone",
                };
                write!(f, "endpoint {place} of {service} on {} {what}", site::host_name(*cluster, *host))
            }
            Self::Policy { cluster, service, order } if order.is_empty() => {
                write!(f, "{} has no policy for {service}", NAMES[*cluster])
            }
            Self::Policy { cluster, service, order } => {
                let order: Vec<&str> = order.iter().map(|place| NAMES[*place]).collect();
                write!(f, "{} sends {service} to {}", NAMES[*cluster], order.join(", else "))
            }
            Self::Drain { cluster, peer, drained } => {
                let state = if *drained { "Drained" } else { "Active" };
                write!(f, "{}'s manifest says {state} of {}", NAMES[*cluster], NAMES[*peer])
            }
            Self::Order { cluster, order, undo } => {
                let undo = if *undo { " --undo" } else { "" };
                match order {
                    Order::DrainPeer(peer) => write!(f, "{}: peers drain {}{undo}", NAMES[*cluster], NAMES[*peer]),
                    Order::BlockPeer(peer) => write!(f, "{}: peers block {}{undo}", NAMES[*cluster], NAMES[*peer]),
                    Order::DrainCluster => write!(f, "{}: drain{undo}", NAMES[*cluster]),
                    Order::DrainGateway(slot) => write!(f, "{}: drain gateway {slot}{undo}", NAMES[*cluster]),
                    Order::DrainNode(host) => {
                        write!(f, "{}: drain node {}{undo}", NAMES[*cluster], site::host_name(*cluster, *host))
                    }
                }
            }
            Self::Accept { cluster, peer, vault } => {
                let whether = if *vault { "accepts" } else { "refuses" };
                write!(f, "{} {whether} the namespace vault of {}", NAMES[*cluster], NAMES[*peer])
            }
            Self::Calm => f.write_str("all trouble is over"),
        }
    }
}
