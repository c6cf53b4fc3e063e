//! The calls a gateway makes: one for each peer and each controller of ours.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::ClusterId;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::dialler::Dialler;

/// The calls that are kept up. Dropping it ends them.
#[derive(Default)]
struct Calls(BTreeMap<(ClusterId, String), AbortHandle>);

impl Calls {
    /// Calls whom nobody calls yet, and ends what is not wanted any more.
    fn adjust(&mut self, peers: &[ClusterId], controllers: &[String], dialler: &Dialler) {
        self.0.retain(|(peer, controller), call| {
            let stays = peers.contains(peer) && controllers.contains(controller);
            if !stays {
                call.abort();
            }
            stays
        });
        for (peer, controller) in peers.iter().flat_map(|peer| controllers.iter().map(move |one| (peer, one))) {
            self.0.entry((peer.clone(), controller.clone())).or_insert_with_key(|(peer, controller)| {
                let (dialler, peer, controller) = (dialler.clone(), peer.clone(), controller.clone());
                tokio::spawn(async move { dialler.keep_dialling(&peer, &controller).await }).abort_handle()
            });
        }
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.0.values().for_each(AbortHandle::abort);
    }
}

/// Keeps them up until the relay stops.
pub(super) async fn keep(
    dialler: Dialler,
    mut peers: watch::Receiver<Vec<ClusterId>>,
    mut controllers: watch::Receiver<Arc<[String]>>,
) {
    let mut calls = Calls::default();
    // Where all controllers are addresses nobody looks anything up, and the other end is gone.
    let mut may_change = true;
    loop {
        let (now, ours) = (peers.borrow_and_update().clone(), controllers.borrow_and_update().clone());
        calls.adjust(&now, &ours, &dialler);
        tokio::select! {
            changed = peers.changed() => if changed.is_err() { return },
            changed = controllers.changed(), if may_change => may_change = changed.is_ok(),
        }
    }
}
