//! [`Engine`]: the lanes and the control thread of a gateway that holds a slot. Knows no objects and no store.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use gateway_core::roster::Roster;
use gateway_core::{ExportChange, LaneNumber};
use ipnet::Ipv6Net;

use crate::control::{self, Control, ControlThread, Order};
use crate::journal::EventJournal;
use crate::lane::{Lane, Threads};
use crate::lane_sessions::{BlockedKeys, LaneSessions};
use crate::session::LaneKeys;
use crate::tun::Tun;
use crate::udp::Sockets;

/// What cannot change while the lanes run. Another plan means another engine.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    /// Lane i's device is this and i.
    pub(crate) device_prefix: String,
    /// Lane i's UDP port is this plus i.
    pub(crate) port: u16,
    pub(crate) mtu: u16,
    pub(crate) slot: u16,
    pub(crate) control_address: Ipv6Addr,
    pub(crate) lanes: u8,
}

pub(crate) struct Engine {
    plan: Plan,
    lanes: Vec<Arc<Lane>>,
    threads: Vec<Threads>,
    control: Control,
    control_thread: JoinHandle<()>,
    exports: Vec<mpsc::Sender<ExportChange>>,
    routed: BTreeSet<Ipv6Net>,
    blocked: BlockedKeys,
}

impl Engine {
    /// `keys` are those of each lane.
    pub(crate) async fn start(plan: Plan, keys: &[LaneKeys], roster: &Roster, journal: EventJournal) -> Result<Self> {
        let blocked = BlockedKeys::new(ArcSwap::from_pointee(roster.blocked_keys.clone()));
        let lane = |(keys, number)| LaneSessions::new(LaneNumber(number), keys, blocked.clone());
        let sessions = keys.iter().zip(0..plan.lanes).map(lane).collect();
        let incarnation = getrandom::u64().context("the system gives no random numbers")?;
        let (control_thread, control) = ControlThread::new(roster.topology.clone(), sessions, incarnation, journal);
        let mut lanes = Vec::new();
        for number in 0..plan.lanes {
            let tun = Tun::open(&format!("{}{number}", plan.device_prefix), plan.mtu).await?;
            let port = plan.port.checked_add(u16::from(number)).context("the last lane's port is beyond 65535")?;
            let sockets = Sockets::open(port)?;
            let view = control_thread.view(LaneNumber(number)).context("a lane without sessions")?;
            lanes.push(Arc::new(Lane::new(LaneNumber(number), tun, sockets, view, plan.mtu)?));
        }
        if let Some(first) = lanes.first() {
            first.tun.add_control_address(plan.control_address).await?;
        }
        let (mut threads, mut exports) = (Vec::new(), Vec::new());
        for lane in &lanes {
            let (sender, receiver) = mpsc::channel();
            let notices = control.clone();
            threads.push(Arc::clone(lane).start(receiver, move |news| notices.notices(news))?);
            exports.push(sender);
        }
        let control_thread = control::spawn(control_thread, lanes.clone())?;
        let routed = BTreeSet::new();
        let mut engine = Self { plan, lanes, threads, control, control_thread, exports, routed, blocked };
        engine.route(&roster.control_prefixes).await;
        Ok(engine)
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(crate) fn lanes(&self) -> &[Arc<Lane>] {
        &self.lanes
    }

    pub(crate) fn control(&self) -> &Control {
        &self.control
    }

    /// Takes a new roster, and the keys of each lane that it was made with. Links that stay are not disturbed.
    pub(crate) async fn configure(&mut self, roster: &Roster, keys: &[LaneKeys]) {
        // Before its sessions end: from then on it knocks.
        self.blocked.store(Arc::new(roster.blocked_keys.clone()));
        self.control.order(Order::Topology(Box::new(roster.topology.clone()), keys.to_vec()));
        self.route(&roster.control_prefixes).await;
    }

    /// Tells every lane what peers may open connections to.
    pub(crate) fn export(&self, changes: impl IntoIterator<Item = ExportChange>) {
        for change in changes {
            for sender in &self.exports {
                // A lane that has ended takes the process with it.
                let _ = sender.send(change);
            }
        }
        self.lanes.iter().for_each(|lane| lane.wake_inbound());
    }

    /// Ends all threads. The devices go away with the last handle.
    pub(crate) async fn stop(self) -> Result<()> {
        let Self { threads, control, control_thread, lanes, .. } = self;
        let end = move || {
            control.order(Order::Stop);
            // A panic in there has ended the process already.
            let _ = control_thread.join();
            threads.into_iter().for_each(Threads::stop);
            drop(lanes);
        };
        tokio::task::spawn_blocking(end).await.context("stopping the lanes")
    }

    /// Keeps the routes of the control relay as wanted. One that fails is tried again with the next change.
    async fn route(&mut self, wanted: &BTreeSet<Ipv6Net>) {
        let Some(first) = self.lanes.first() else { return };
        for prefix in self.routed.clone().difference(wanted) {
            match first.tun.remove_control_route(*prefix).await {
                Ok(()) => _ = self.routed.remove(prefix),
                Err(error) => tracing::warn!("{error:#}"),
            }
        }
        for prefix in wanted {
            if self.routed.contains(prefix) {
                continue;
            }
            match first.tun.add_control_route(*prefix).await {
                Ok(()) => _ = self.routed.insert(*prefix),
                Err(error) => tracing::warn!("{error:#}"),
            }
        }
    }
}
