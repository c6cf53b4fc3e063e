//! What a [`Happening`] does to a world.

use crate::follower::Disk;
use crate::happening::{Happening, Part};
use crate::site::{self, NAMES, Name};
use crate::world::{Event, MS, World};

impl World {
    pub(crate) fn do_happening(&mut self, happening: &Happening) {
        match happening {
            Happening::Cut { from, to } => self.network.cut[*from][*to] = true,
            Happening::Isolate { cluster } => {
                for other in 0..self.clusters.len() {
                    self.network.cut[*cluster][other] = true;
                    self.network.cut[other][*cluster] = true;
                }
            }
            Happening::Weather(weather) => self.network.weather = *weather,
            Happening::Move { cluster, slot } => {
                let port = 30_000 + self.random.below(30_000) as u16;
                if let Some(outside) = self.clusters[*cluster].outside.get_mut(usize::from(*slot)) {
                    (port..).zip(outside).for_each(|(port, lane)| lane.set_port(port));
                }
            }
            Happening::Lane { cluster, slot, lane, open } => {
                if *open {
                    self.network.shut.remove(&(*cluster, *slot, *lane));
                } else {
                    self.network.shut.insert((*cluster, *slot, *lane));
                }
            }
            Happening::Restart { cluster, part, disk } => {
                if crate::parts::runs(&self.clusters[*cluster], *part) {
                    self.stop(*cluster, *part);
                    let at = self.now + 100 * MS + self.random.below(300 * MS);
                    self.at(at, Event::Start { cluster: *cluster, part: *part, disk: *disk });
                }
            }
            Happening::Kill { cluster, part } => {
                self.killed.insert((*cluster, *part));
                self.stop(*cluster, *part);
            }
            Happening::Sleep { cluster, seconds } => self.make_drowsy(*cluster, *seconds),
            Happening::Unplug { cluster, host } => self.clusters[*cluster].hosts[*host].is_unplugged = true,
            Happening::SetClock { cluster, by } => self.clusters[*cluster].wall_ahead += by * 1000,
            Happening::StoreAway { cluster } => self.clusters[*cluster].objects.is_away = true,
            Happening::BackUp { cluster } => self.back_up(*cluster),
            Happening::Export { cluster, service } => {
                let wall = self.clusters[*cluster].now(self.now).wall;
                self.clusters[*cluster].objects.put(site::export(*service), wall);
                self.changed(*cluster);
            }
            Happening::Unexport { cluster, service } => {
                let objects = &mut self.clusters[*cluster].objects;
                objects.delete::<api::ServiceExport>(service.namespace(), service.name());
                self.changed(*cluster);
            }
            Happening::Endpoint { cluster, service, .. } => self.put_slice(*cluster, *service),
            Happening::Policy { cluster, service, order } => {
                let wall = self.clusters[*cluster].now(self.now).wall;
                let objects = &mut self.clusters[*cluster].objects;
                if order.is_empty() {
                    objects.delete::<api::RoutingPolicy>(service.namespace(), service.name());
                } else {
                    objects.put(site::policy(*service, order), wall);
                }
                self.changed(*cluster);
            }
            Happening::Drain { cluster, peer, .. } | Happening::Accept { cluster, peer, .. } => {
                self.put_peer(*cluster, *peer);
            }
            Happening::Order { cluster, order, undo } => {
                self.clusters[*cluster].orders.push_back((*order, *undo));
                self.give_orders(*cluster);
            }
            Happening::Calm => self.calm(),
        }
    }

    /// All trouble ends.
    fn calm(&mut self) {
        self.network.calm();
        for cluster in &mut self.clusters {
            cluster.objects.is_away = false;
            cluster.hosts.iter_mut().for_each(|host| host.is_unplugged = false);
        }
        for (cluster, part) in std::mem::take(&mut self.killed) {
            let at = self.now + self.random.below(300 * MS);
            self.at(at, Event::Start { cluster, part, disk: Disk::Kept });
        }
    }

    fn back_up(&mut self, place: usize) {
        let cluster = &mut self.clusters[place];
        cluster.controller.back_up();
        cluster.names.follower.back_up();
        cluster.gateways.iter_mut().for_each(|gateway| gateway.follower.back_up());
        cluster.hosts.iter_mut().for_each(|host| host.follower.back_up());
    }

    /// The endpoints of a service as the truth has them.
    fn put_slice(&mut self, place: usize, service: Name) {
        let wall = self.clusters[place].now(self.now).wall;
        for family in self.clusters[place].shape.families.all() {
            let endpoints: Vec<(usize, u8, bool)> = self.truth.said(place, service).collect();
            let slice = site::slice(place, self.clusters[place].shape, service, *family, &endpoints);
            self.clusters[place].objects.put(slice, wall);
        }
        self.changed(place);
    }

    /// Every cluster has the Services that it may export.
    pub(crate) fn put_services(&mut self) {
        for place in 0..self.clusters.len() {
            let wall = self.clusters[place].now(self.now).wall;
            let shape = self.clusters[place].shape;
            for service in Name::ALL {
                self.clusters[place].objects.put(site::service(service, shape), wall);
            }
            self.changed(place);
        }
    }

    /// Whether all parts of a kind of trouble are gone: nothing was killed for good.
    pub(crate) fn is_killed(&self, place: usize, part: Part) -> bool {
        self.killed.contains(&(place, part))
    }

    /// How all paths are, for a story's end.
    pub(crate) fn paths(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for cluster in &self.clusters {
            for gateway in &cluster.gateways {
                let now = cluster.now(self.now).instant;
                let Some(core) = &gateway.core else {
                    lines.push(format!("{} gateway {} forwards nothing", NAMES[cluster.place], gateway.slot));
                    continue;
                };
                let states = core
                    .paths
                    .statuses(now)
                    .map(|(link, status)| format!("{} {}: {}", link.cluster, link.slot, status.state));
                lines.push(format!(
                    "{} gateway {}: {}",
                    NAMES[cluster.place],
                    gateway.slot,
                    states.collect::<Vec<_>>().join(", ")
                ));
            }
        }
        lines
    }
}
