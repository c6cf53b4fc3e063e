//! The thread that looks at everything in the kernel while the owner goes on.

use std::collections::BTreeMap;
use std::sync::mpsc::{Sender, channel};

use anyhow::Context;
use kernel::Seen;
use kernel::core::{Change, Setting, State, difference};
use tokio::sync::mpsc;

use crate::owner::Told;

/// What is to be compared.
pub(crate) struct Request {
    /// Comes back with the answer.
    pub(crate) number: u64,
    pub(crate) wanted: State,
    pub(crate) settings: BTreeMap<Setting, u8>,
}

/// What came of a look.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) number: u64,
    /// What was seen, and the steps that would make it what was wanted.
    pub(crate) result: Result<(Seen, Vec<Change>), kernel::Error>,
}

/// Starts the thread, in the network namespace of the caller. It ends when the sender is dropped.
pub(crate) fn start(told: mpsc::Sender<Told>) -> anyhow::Result<Sender<Request>> {
    let mut lookout = kernel::Lookout::open()?;
    let (requests, asked) = channel::<Request>();
    let run = move || {
        for Request { number, wanted, settings } in asked {
            let seen = lookout.look(settings);
            let result = seen.map(|seen| {
                let changes = difference(&wanted, &seen.state);
                (seen, changes)
            });
            if told.blocking_send(Told::Found(Box::new(Found { number, result }))).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("lookout".into()).spawn(run).context("starting a thread")?;
    Ok(requests)
}
