//! A running part: its surface served, signals heard, its end reported.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use api::surface::Surface;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::arguments::PartArguments;
use crate::ask::Part;
use crate::output::Outcome;
use crate::serve;

/// A part gets this long to stop in good order: a gateway forwards for 2 s while others turn away from it.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// What starting a part gives.
pub struct Started {
    pub part: Part,
    pub surface: Arc<dyn Surface>,
    pub work: JoinHandle<anyhow::Result<()>>,
}

/// A token that a first SIGTERM or SIGINT cancels; a second one ends the process at once.
pub fn stop_on_signals() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("cannot hear signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot hear signals")?;
    let cancelled = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("stopping in good order; a second signal ends it at once");
        cancelled.cancel();
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        std::process::exit(130);
    });
    Ok(stop)
}

/// Serves the surfaces of what was started and waits: for a signal, or for the first part that ends by itself.
pub async fn until_stopped(
    started: Vec<Started>,
    run_dir: &Path,
    arguments: &PartArguments,
    stop: CancellationToken,
) -> anyhow::Result<Outcome> {
    let mut servers = Vec::new();
    let started: Vec<Started> =
        started.into_iter().map(|part| Started { surface: Arc::new(Versioned(part.surface)), ..part }).collect();
    for part in &started {
        servers.push(serve::on_socket(&part.part.socket(run_dir), Arc::clone(&part.surface)).await?);
    }
    if let Some(address) = arguments.metrics {
        let surfaces = started.iter().map(|part| (part.part, Arc::clone(&part.surface))).collect();
        servers.push(serve::on_port(address, Arc::new(Together(surfaces))).await?);
    }
    let sockets: Vec<_> = started.iter().map(|part| part.part.socket(run_dir)).collect();
    let mut work: Vec<_> = started.into_iter().map(|part| (part.part, part.work)).collect();
    let ended_by_itself = tokio::select! {
        () = stop.cancelled() => None,
        (part, result) = first_to_end(&mut work) => Some((part, result)),
    };
    // A part may be quicker to stop than this is to hear that it shall.
    let asked = stop.is_cancelled();
    stop.cancel();
    let mut outcome = match ended_by_itself {
        None => Ok(Outcome::Good),
        Some((_, Ok(()))) if asked => Ok(Outcome::Good),
        Some((part, result)) => Err(match result {
            Err(error) => error.context(format!("the {} ended", part.name())),
            Ok(()) => anyhow::anyhow!("the {} ended without being asked to", part.name()),
        }),
    };
    for (part, task) in work {
        match tokio::time::timeout(STOP_LIMIT, task).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => outcome = Err(error.context(format!("stopping the {}", part.name()))),
            Ok(Err(panic)) => outcome = Err(anyhow::anyhow!("the {} panicked: {panic}", part.name())),
            Err(_) => outcome = Err(anyhow::anyhow!("the {} did not stop within {STOP_LIMIT:?}", part.name())),
        }
    }
    for server in servers {
        server.abort();
    }
    // A socket that stays means a part that did not end in good order.
    for socket in sockets {
        let _ = std::fs::remove_file(socket);
    }
    outcome
}

async fn first_to_end(work: &mut Vec<(Part, JoinHandle<anyhow::Result<()>>)>) -> (Part, anyhow::Result<()>) {
    let (index, result) = std::future::poll_fn(|context| {
        for (index, (_, task)) in work.iter_mut().enumerate() {
            if let std::task::Poll::Ready(result) = std::pin::Pin::new(task).poll(context) {
                return std::task::Poll::Ready((index, result));
            }
        }
        std::task::Poll::Pending
    })
    .await;
    let (part, _) = work.remove(index);
    (part, result.unwrap_or_else(|panic| Err(anyhow::anyhow!("it panicked: {panic}"))))
}

/// A part's surface, whose metrics say which version runs.
struct Versioned(Arc<dyn Surface>);

impl Surface for Versioned {
    fn readiness(&self) -> api::surface::Readiness {
        self.0.readiness()
    }

    fn metrics(&self) -> String {
        crate::exposition::with_build_info(&self.0.metrics())
    }

    fn answer(&self, question: &str) -> Option<serde_json::Value> {
        self.0.answer(question)
    }

    fn order(&self, order: &str) -> Option<Result<serde_json::Value, String>> {
        self.0.order(order)
    }
}

/// Several parts of one process on one metrics port.
struct Together(Vec<(Part, Arc<dyn Surface>)>);

impl Surface for Together {
    fn readiness(&self) -> api::surface::Readiness {
        let awaiting = self.0.iter().flat_map(|(part, surface)| {
            surface.readiness().awaiting.into_iter().map(move |what| format!("{}: {what}", part.name()))
        });
        api::surface::Readiness { awaiting: awaiting.collect() }
    }

    fn metrics(&self) -> String {
        let texts: Vec<_> = self.0.iter().map(|(part, surface)| (part.name(), surface.metrics())).collect();
        crate::exposition::merge(texts.iter().map(|(part, text)| (*part, text.as_str())))
    }

    fn answer(&self, _: &str) -> Option<serde_json::Value> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Silent;

    impl Surface for Silent {
        fn readiness(&self) -> api::surface::Readiness {
            api::surface::Readiness { awaiting: Vec::new() }
        }

        fn metrics(&self) -> String {
            "# EOF\n".to_owned()
        }

        fn answer(&self, _: &str) -> Option<serde_json::Value> {
            None
        }
    }

    fn part(work: JoinHandle<anyhow::Result<()>>) -> Vec<Started> {
        vec![Started { part: Part::Node, surface: Arc::new(Silent), work }]
    }

    /// Runs one part until it or the stop ends it.
    async fn run(work: impl FnOnce(CancellationToken) -> JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let arguments = PartArguments { state: folder.path().to_owned(), metrics: None, log_json: false };
        let stop = CancellationToken::new();
        let work = work(stop.clone());
        until_stopped(part(work), folder.path(), &arguments, stop).await.map(|_| ())
    }

    /// Whichever the waiting task hears first: the order to stop, or the end of the part that heard it sooner.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_part_that_stops_as_soon_as_it_is_asked_has_ended_well() {
        for _ in 0..200 {
            let ended = run(|stop| {
                tokio::spawn(async move {
                    // Ends at once, as a part does that has nothing to put in order.
                    stop.cancel();
                    Ok(())
                })
            });
            ended.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_part_that_ends_without_being_asked_is_a_failure_and_named() {
        let error = run(|_| tokio::spawn(async { Ok(()) })).await.unwrap_err();
        assert_eq!(error.to_string(), "the node ended without being asked to");
    }
}
