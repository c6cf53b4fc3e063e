//! Parts of a cluster start and are killed.

use crate::cluster::Cluster;
use crate::follower::Disk;
use crate::happening::Part;
use crate::world::{Event, MS, World};

impl World {
    pub(crate) fn stop(&mut self, place: usize, part: Part) {
        match part {
            Part::Controller => {
                self.clusters[place].controller.stop();
                for part in self.parts(place) {
                    self.lose_feed(place, part);
                }
                // Both ends of what gateways spliced to it are gone.
                let keys: Vec<_> = self.clusters[place].ends.keys().copied().collect();
                for key in keys {
                    self.close(place, &key);
                }
            }
            Part::Gateway(slot) => {
                let keys: Vec<_> = self.clusters[place].ends.keys().filter(|key| key.0 == slot).copied().collect();
                let now = self.clusters[place].now(self.now);
                let cluster = &mut self.clusters[place];
                for key in keys {
                    cluster.ends.remove(&key);
                    if let Some(process) = &mut cluster.controller.process {
                        process.hung_up(&key, "the gateway is gone", now);
                    }
                }
                let gateway = &mut cluster.gateways[usize::from(slot)];
                let (host, had) = (gateway.host, gateway.core.is_some());
                let devices: Vec<String> = gateway.devices().collect();
                gateway.stop();
                if had {
                    devices.iter().for_each(|device| cluster.hosts[host].device(device, false, now.instant));
                    self.settle_host(place, host);
                }
                self.settle_controller(place);
            }
            Part::Node(host) => {
                self.agent_seen(place, host, false);
                self.clusters[place].hosts[host].stop_agent();
            }
            Part::Dns => self.clusters[place].names.stop(),
        }
        self.truth.note_part(place, part, false, self.now);
    }

    pub(crate) fn start(&mut self, place: usize, part: Part, disk: Disk) {
        if runs(&self.clusters[place], part) || self.is_killed(place, part) {
            return;
        }
        let random = self.random.next();
        let now = self.clusters[place].now(self.now);
        let cluster = &mut self.clusters[place];
        match part {
            Part::Controller => {
                cluster.controller.start(disk, random, now);
                let all = cluster.controller.follower.connect(&cluster.objects);
                cluster.controller.take_all(&all, now);
            }
            Part::Gateway(slot) => {
                let gateway = &mut cluster.gateways[usize::from(slot)];
                let known = gateway.follower.start(disk);
                gateway.start(random, known, now.instant);
            }
            Part::Node(host) => {
                let known = cluster.hosts[host].follower.start(disk);
                cluster.hosts[host].start_agent(known, now.world, now.instant);
                cluster.hosts[host].asks_at = now.world;
            }
            Part::Dns => {
                let known = cluster.names.follower.start(disk);
                cluster.names.start(known, now.instant);
                cluster.names.asks_at = now.world;
            }
        }
        self.truth.note_part(place, part, true, self.now);
        let at = self.now + 20 * MS + self.random.below(80 * MS);
        self.at(at, Event::Feed { cluster: place, part });
        self.follow_up(place, part);
    }
}

/// Whether a part runs.
pub(crate) fn runs(cluster: &Cluster, part: Part) -> bool {
    match part {
        Part::Controller => cluster.controller.process.is_some(),
        Part::Gateway(slot) => cluster.gateways[usize::from(slot)].runs,
        Part::Node(host) => cluster.hosts[host].agent.is_some(),
        Part::Dns => cluster.names.process.is_some(),
    }
}
