//! How parts come to see what is in their cluster's store: the controller by itself, all others by its feed.

use crate::happening::Part;
use crate::objects::Change;
use crate::parts::runs;
use crate::world::{Event, MS, World};

impl World {
    /// Something in a cluster's store changed: the oracle looks at it, and every follower will see it.
    pub(crate) fn changed(&mut self, place: usize) {
        self.judge_objects(place);
        self.judge_pace(place);
        let upto = self.clusters[place].objects.log().len();
        for part in self.parts(place) {
            let at = self.now + MS + self.random.below(20 * MS);
            self.at(at, Event::Shown { cluster: place, part, upto });
        }
    }

    pub(crate) fn show(&mut self, place: usize, part: Part, upto: usize) {
        let now = self.clusters[place].now(self.now);
        let cluster = &mut self.clusters[place];
        let follower = match part {
            Part::Controller => &mut cluster.controller.follower,
            Part::Gateway(slot) => &mut cluster.gateways[usize::from(slot)].follower,
            Part::Node(host) => &mut cluster.hosts[host].follower,
            Part::Dns => &mut cluster.names.follower,
        };
        let changes: Vec<Change> = follower.advance(&cluster.objects, upto);
        if changes.is_empty() {
            return;
        }
        for change in &changes {
            match part {
                Part::Controller => cluster.controller.take(change, now),
                Part::Gateway(slot) => cluster.gateways[usize::from(slot)].take(change, now.instant),
                Part::Node(host) => cluster.hosts[host].take(change, now.instant),
                Part::Dns => cluster.names.take(change, now.instant),
            }
        }
        self.follow_up(place, part);
    }

    /// A part was told something.
    pub(crate) fn follow_up(&mut self, place: usize, part: Part) {
        match part {
            Part::Controller => self.settle_controller(place),
            Part::Gateway(slot) => self.settle_gateway(place, usize::from(slot)),
            Part::Node(host) => self.settle_host(place, host),
            Part::Dns => self.settle_names(place),
        }
    }

    pub(crate) fn host_of(&self, place: usize, part: Part) -> usize {
        match part {
            Part::Gateway(slot) => self.clusters[place].gateways[usize::from(slot)].host,
            Part::Node(host) => host,
            Part::Controller | Part::Dns => self.clusters[place].last_host(),
        }
    }

    /// A part that runs asks for its feed; tried again until it is there.
    pub(crate) fn feed(&mut self, place: usize, part: Part) {
        let host = self.host_of(place, part);
        let now = self.clusters[place].now(self.now);
        let reaches = self.clusters[place].feeds(host);
        let cluster = &mut self.clusters[place];
        if !runs(cluster, part) {
            return;
        }
        if !reaches {
            let at = self.now + 200 * MS;
            return self.at(at, Event::Feed { cluster: place, part });
        }
        let follower = match part {
            Part::Controller => return,
            Part::Gateway(slot) => &mut cluster.gateways[usize::from(slot)].follower,
            Part::Node(host) => &mut cluster.hosts[host].follower,
            Part::Dns => &mut cluster.names.follower,
        };
        if follower.is_connected {
            return;
        }
        let all = follower.connect(&cluster.objects);
        match part {
            Part::Gateway(slot) => cluster.gateways[usize::from(slot)].take_all(&all, now.instant),
            Part::Node(host) => {
                cluster.hosts[host].take_all(&all, now.instant);
                self.agent_seen(place, host, true);
            }
            Part::Dns => cluster.names.take_all(&all, now.instant),
            Part::Controller => {}
        }
        self.follow_up(place, part);
    }

    /// A part lost its feed; it will look for it again.
    pub(crate) fn lose_feed(&mut self, place: usize, part: Part) {
        let cluster = &mut self.clusters[place];
        let follower = match part {
            Part::Controller => return,
            Part::Gateway(slot) => &mut cluster.gateways[usize::from(slot)].follower,
            Part::Node(host) => &mut cluster.hosts[host].follower,
            Part::Dns => &mut cluster.names.follower,
        };
        if !std::mem::take(&mut follower.is_connected) {
            return;
        }
        if let Part::Node(host) = part {
            self.agent_seen(place, host, false);
        }
        let at = self.now + 100 * MS + self.random.below(200 * MS);
        self.at(at, Event::Feed { cluster: place, part });
    }

    pub(crate) fn agent_seen(&mut self, place: usize, host: usize, connected: bool) {
        let cluster = &mut self.clusters[place];
        let now = cluster.now(self.now);
        let agent = cluster.agent(host, connected, now.wall);
        let name = cluster.hosts[host].name.clone();
        if let Some(process) = &mut cluster.controller.process {
            process.engine.observe_agent(&name, agent, now.instant);
            self.settle_controller(place);
        }
    }
}
