//! The controllers behind the names a gateway was given: on Kubernetes one headless Service stands for all replicas, and
//! each of them has to be called.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// How often names are looked up: a replica that came is called this late at most. Calls to those that went fail by
/// themselves.
const LOOK_UP_EVERY: Duration = Duration::from_secs(5);
/// A resolver that is away must not hold back the names after this one.
const LOOK_UP_LIMIT: Duration = Duration::from_secs(3);

/// Every controller there is, from now on: addresses as they were given, names as what they stand for.
pub(super) fn follow(given: Vec<String>) -> watch::Receiver<Arc<[String]>> {
    let (fixed, names): (Vec<String>, Vec<String>) = given.into_iter().partition(|controller| is_address(controller));
    let (found, controllers) = watch::channel(fixed.clone().into());
    if names.is_empty() {
        return controllers;
    }
    tokio::spawn(async move {
        let mut known = BTreeMap::new();
        loop {
            for name in &names {
                let addresses = tokio::time::timeout(LOOK_UP_LIMIT, tokio::net::lookup_host(name)).await;
                match addresses.map_err(|_| std::io::ErrorKind::TimedOut.into()).flatten() {
                    Ok(addresses) => drop(known.insert(name.clone(), addresses.collect())),
                    // What it stood for last may still be there.
                    Err(error) => tracing::debug!(%error, name, "a controller's name cannot be looked up"),
                }
            }
            let all = behind(&fixed, &names, &known);
            found.send_if_modified(|held| {
                let changed = **held != *all;
                if changed {
                    *held = all.into();
                }
                changed
            });
            tokio::select! {
                () = tokio::time::sleep(LOOK_UP_EVERY) => {}
                // The relay stopped.
                () = found.closed() => return,
            }
        }
    });
    controllers
}

fn is_address(controller: &str) -> bool {
    controller.starts_with("unix:") || controller.parse::<SocketAddr>().is_ok()
}

/// What there is to call. A name that was never found stays itself, so that the call to it says what is wrong.
fn behind(fixed: &[String], names: &[String], known: &BTreeMap<String, BTreeSet<SocketAddr>>) -> Vec<String> {
    let found = names.iter().flat_map(|name| match known.get(name) {
        Some(addresses) => addresses.iter().map(ToString::to_string).collect(),
        None => vec![name.clone()],
    });
    fixed.iter().cloned().chain(found).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_for_all_its_addresses_and_for_itself_until_it_has_any() {
        let (fixed, names) = (["unix:/run/a".to_owned()], ["controllers:7443".to_owned()]);
        let mut known = BTreeMap::new();
        assert_eq!(behind(&fixed, &names, &known), ["unix:/run/a", "controllers:7443"]);
        let addresses = ["10.0.0.2:7443", "10.0.0.1:7443", "[fd00::1]:7443"].map(|text| text.parse().unwrap());
        known.insert(names[0].clone(), addresses.into());
        let all = ["unix:/run/a", "10.0.0.1:7443", "10.0.0.2:7443", "[fd00::1]:7443"];
        assert_eq!(behind(&fixed, &names, &known), all);
    }

    #[tokio::test]
    async fn names_are_looked_up_and_addresses_are_not() {
        let mut controllers = follow(vec!["192.0.2.1:7443".into(), "localhost:7443".into()]);
        assert_eq!(controllers.borrow_and_update()[0], "192.0.2.1:7443");
        tokio::time::timeout(Duration::from_secs(20), controllers.changed()).await.unwrap().unwrap();
        let found = controllers.borrow().to_vec();
        assert!(found.iter().any(|one| one == "127.0.0.1:7443" || one == "[::1]:7443"), "{found:?}");
    }
}
