//! Follows the network devices of this host: a gateway's tunnel devices come and go with its process.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context;
use kernel::core::DeviceName;
use kernel::{Device, DeviceEvent, DeviceWatch};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::owner::Told;

/// How long the thread waits before it looks whether it shall end.
const PATIENCE: Duration = Duration::from_millis(200);

/// Tells the owner what happens to devices. The queue is opened before this returns, so nothing after it is missed.
pub(crate) fn follow(told: mpsc::Sender<Told>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut watch = DeviceWatch::open()?;
    let run = move || {
        while !stop.is_cancelled() && !told.is_closed() {
            let event = match watch.next(PATIENCE) {
                Ok(None) => continue,
                Ok(Some(event)) => event,
                Err(error) => {
                    tracing::warn!(%error, "devices cannot be followed for a moment; everything is looked at again");
                    std::thread::sleep(PATIENCE);
                    DeviceEvent::Missed
                }
            };
            if told.blocking_send(Told::Device(event)).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("devices".into()).spawn(run).context("starting a thread")?;
    Ok(())
}

/// The devices as the owner knows them: number and whether it is up, by name.
#[derive(Default)]
pub(crate) struct Devices(BTreeMap<DeviceName, (u32, bool)>);

impl Devices {
    pub(crate) fn replace(&mut self, all: Vec<Device>) {
        self.0 = all.into_iter().map(|device| (device.name, (device.index, device.up))).collect();
    }

    /// Takes news of one device. True when the kernel took away what leaned on it: it is gone, was made anew under its
    /// name, or was down for a moment.
    pub(crate) fn take(&mut self, name: DeviceName, now: Option<(u32, bool)>) -> bool {
        let before = match now {
            Some(now) => self.0.insert(name, now),
            None => self.0.remove(&name),
        };
        before.is_some_and(|before| before.1 && Some(before) != now)
    }

    pub(crate) fn up(&self) -> BTreeSet<DeviceName> {
        self.0.iter().filter(|(_, (_, up))| *up).map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_was_made_anew_or_was_down_has_lost_what_leaned_on_it() {
        let mut devices = Devices::default();
        let name = || DeviceName::new("tombolo-0-0").unwrap();
        assert!(!devices.take(name(), Some((7, true))));
        assert!(!devices.take(name(), Some((7, true))));
        assert!(devices.take(name(), Some((8, true))));
        assert!(devices.take(name(), Some((8, false))));
        assert!(devices.up().is_empty());
        assert!(!devices.take(name(), Some((8, true))));
        assert!(devices.take(name(), None));
    }
}
