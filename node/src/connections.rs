//! [`Connections`]: how many connections to clusterset addresses each cluster was given.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Totals by cluster, out of the kernel's counters. Those go on while the agent is away, so that connections made
/// meanwhile are counted too; they begin at zero when the table was made anew or a peer came back.
#[derive(Debug, Default)]
pub(crate) struct Connections(Mutex<BTreeMap<String, Counted>>);

#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    /// The kernel's counter as it was read last; zero while there is none.
    read: u64,
    total: u64,
}

impl Connections {
    /// Takes the kernel's counters as they are now.
    pub(crate) fn reconcile(&self, counters: &BTreeMap<String, u64>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (cluster, read) in counters {
            let counted = known.entry(cluster.clone()).or_default();
            counted.total += read.checked_sub(counted.read).unwrap_or(*read);
            counted.read = *read;
        }
        for (_, counted) in known.iter_mut().filter(|(cluster, _)| !counters.contains_key(*cluster)) {
            counted.read = 0;
        }
    }

    pub(crate) fn totals(&self) -> Vec<(String, u64)> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().map(|(cluster, counted)| (cluster.clone(), counted.total)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_total_never_falls_whatever_becomes_of_the_kernels_counter() {
        let connections = Connections::default();
        let total_after = |birch: Option<u64>| {
            connections.reconcile(&birch.map(|count| ("birch".to_owned(), count)).into_iter().collect());
            connections.totals()[0].1
        };
        assert_eq!(total_after(Some(7)), 7, "what was counted before the agent began");
        assert_eq!(total_after(Some(9)), 9);
        assert_eq!(total_after(Some(2)), 11, "the table was made anew");
        assert_eq!(total_after(None), 11, "the peer is gone");
        assert_eq!(total_after(Some(3)), 14, "and back, with a new counter");
    }
}
