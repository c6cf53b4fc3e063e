//! What this controller knows of imported EndpointSlices and the store does not say yet: agents are shown it without
//! waiting for the store, by every replica (decision 14). New imports are not: their addresses are the writer's to give.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use api::kubernetes::EndpointSlice;

use crate::advertisement::ServiceName;
use crate::engine::Engine;
use crate::index::ObjectKey;
use crate::plan::{Object, Verb, Write};
use crate::service_plan::is_ours;

/// The slices of one service that are not as the store has them; `None` where one should not be there.
pub type Ahead = Vec<(ObjectKey, Option<EndpointSlice>)>;

impl Engine {
    /// From now on [`Self::ahead`] says what changed; it is not kept for nobody.
    pub fn go_ahead(&mut self) {
        self.unshown = Some(self.imported_of.keys().cloned().collect());
    }

    /// Every service of which something changed since the last call, and what is ahead of the store there.
    pub fn ahead(&mut self) -> Vec<(ServiceName, Ahead)> {
        if !self.is_ready() {
            return Vec::new();
        }
        let services = self.unshown.as_mut().map(core::mem::take).unwrap_or_default();
        services
            .into_iter()
            .map(|name| {
                let ahead = self.ahead_of_store(&name);
                (name, ahead)
            })
            .collect()
    }

    fn ahead_of_store(&self, name: &ServiceName) -> Ahead {
        let Some(import) = self.imports.get(&ObjectKey::from(name)) else { return Vec::new() };
        if !is_ours(import) || self.awaits_a_word(name, import) {
            return Vec::new();
        }
        let owner = import.metadata.uid.as_deref();
        let wanted = match (self.merged(name), owner) {
            (Some(merged), Some(owner)) => self.wanted_slices(name, &merged, owner),
            (Some(_), None) => return Vec::new(),
            (None, _) => BTreeMap::new(),
        };
        self.plan_slices(name, wanted).into_iter().filter_map(shown).collect()
    }
}

fn shown(write: Write) -> Option<(ObjectKey, Option<EndpointSlice>)> {
    let Object::EndpointSlice(slice) = write.object else { return None };
    Some((ObjectKey::of(&*slice), (write.verb != Verb::Delete).then_some(*slice)))
}
