//! The owner's part in who is a peer: the identities each may prove, and which generation of its record is in force.
//! Connections read both; they never touch the engine.

use std::sync::Arc;

use api::ClusterId;
use api::cluster_peer::PeerState;
use api::keys::IdentityKey;

use crate::connections::Roster;
use crate::owner::Owner;

impl Owner {
    pub(crate) fn settle_roster(&mut self) {
        let own = self.engine.cluster_id();
        let active = self.engine.peers().filter(|peer| peer.state() != PeerState::Blocked);
        let fresh: Roster = active
            .filter_map(|peer| {
                let id = ClusterId::new(peer.metadata.name.as_deref()?).ok().filter(|id| Some(id) != own)?;
                let identities = self.engine.identities_of(&id)?;
                Some((id, identities))
            })
            .collect();
        let held = self.roster.borrow().clone();
        for (peer, before) in held.iter() {
            let names = |keys: &[IdentityKey]| keys.iter().map(IdentityKey::fingerprint).collect::<Vec<_>>().join(", ");
            if let Some(after) = fresh.get(peer).filter(|after| *after != before) {
                self.surface.event(format!("identity of {peer}"), &names(before), &names(after), "");
            }
        }
        self.roster.send_if_modified(|held| {
            let changed = **held != fresh;
            if changed {
                *held = Arc::new(fresh);
            }
            changed
        });
    }

    /// Which generation of each peer's record is in force. A record is read once for each version of its object: its
    /// signature is verified, which is not for free.
    pub(crate) fn settle_records(&mut self) {
        let before = std::mem::take(&mut self.records_read);
        for peer in self.engine.peers() {
            let Some(id) = peer.metadata.name.as_deref().and_then(|name| ClusterId::new(name).ok()) else { continue };
            let version = peer.metadata.resource_version.clone();
            let read = match before.get(&id) {
                Some((known, generation)) if *known == version => *generation,
                _ => peer.newest_record().map(|record| record.generation),
            };
            self.records_read.insert(id, (version, read));
        }
        if self.records_read != before {
            let read = self.records_read.iter();
            let in_force = read.filter_map(|(id, (_, generation))| Some((id.clone(), (*generation)?))).collect();
            self.shared.records.send_replace(in_force);
        }
    }
}
