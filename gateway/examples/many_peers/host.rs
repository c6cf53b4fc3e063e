//! A process that runs gateways: the one that is measured, or a crowd that it is joined to.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use store::Store;
use tokio_util::sync::CancellationToken;
use tracing::Level;

use crate::lines::Lines;
use crate::member::Orders;
use crate::memory::Memory;

/// What it says when every gateway forwards.
pub(crate) const READY: &str = "many_peers: all gateways forward";

/// Runs every gateway that `orders` (a JSON list) names until it is killed. Their events go to `events`, a line each:
/// the time in microseconds since boot, and the event.
pub(crate) fn run(orders: &Path, events: &Path, state: &Path) -> Result<()> {
    let orders: Vec<Orders> = serde_json::from_slice(&std::fs::read(orders)?)?;
    let file = Mutex::new(File::create(events)?);
    let keep = move |line: &str| {
        let now = clock::now().as_micros();
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        // Who reads it misses the event and says so.
        let _ = writeln!(file, "{now} {line}");
    };
    tracing::subscriber::set_global_default(Lines::new(Level::INFO, keep))?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let mut running = Vec::new();
        for order in orders {
            let mut config = gateway::Config::new(&order.node, state.join(&order.node));
            config.device_prefix = order.device_prefix;
            config.port = Some(order.port);
            config.health_port = Some(order.health_port);
            let memory = Arc::new(Memory::default());
            order.objects.into_iter().for_each(|object| memory.put(object));
            let store = Store::new(memory as Arc<dyn store::Backend>);
            running.push(gateway::start(config, store, CancellationToken::new()).await?);
        }
        for (surface, _) in &running {
            while !surface.readiness().awaiting.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        println!("{READY}");
        for (_, task) in running {
            task.await.context("a gateway's task")??;
        }
        Ok(())
    })
}
