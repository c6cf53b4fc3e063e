//! What is due to be planned anew.

use alloc::string::ToString;
use alloc::vec::Vec;

use api::ClusterId;

use super::Engine;
use crate::advertisement::{ItemKey, ServiceName};
use crate::plan::Subject;

impl Engine {
    pub(crate) fn touch_services(&mut self, services: impl IntoIterator<Item = ServiceName>) {
        services.into_iter().for_each(|service| self.touch_service(service));
    }

    pub(crate) fn touch_service(&mut self, service: ServiceName) {
        if let Some(unshown) = &mut self.unshown {
            unshown.insert(service.clone());
        }
        self.dirty.insert(Subject::Service(service));
    }

    pub(crate) fn touch_peer(&mut self, cluster: &ClusterId) {
        self.dirty.insert(Subject::Peer(cluster.to_string()));
    }

    pub(crate) fn touch(&mut self, subject: Subject) {
        self.dirty.insert(subject);
    }

    /// A namespace came or went: imports are due that were not before, or the other way round.
    pub(crate) fn touch_namespace(&mut self, namespace: &str) {
        let first = ItemKey::service(ServiceName::new(namespace, ""));
        let remote = self.remote.clusters().filter_map(|id| self.remote.usable(id)).flat_map(|usable| {
            let of_it = usable.after(Some(&first)).take_while(|(key, _)| key.service.namespace == namespace);
            of_it.filter(|(key, _)| key.slice.is_none()).map(|(key, _)| key.service.clone())
        });
        let services: Vec<ServiceName> =
            self.imports.in_namespace(namespace).map(|(key, _)| key.service()).chain(remote).collect();
        self.touch_services(services);
    }

    pub(crate) fn remote_services(&self) -> impl Iterator<Item = ServiceName> {
        self.remote
            .clusters()
            .filter_map(|id| self.remote.usable(id))
            .flat_map(|usable| usable.iter())
            .filter(|(key, _)| key.slice.is_none())
            .map(|(key, _)| key.service.clone())
    }
}
