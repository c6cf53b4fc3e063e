//! Log lines: one a line, to stderr, in words or as JSON. `TOMBOLO_LOG` takes tracing's filter syntax.

use tracing_subscriber::EnvFilter;

/// Starts logging for a running part. Commands that only ask do not log. What fails at an API server is told once by who
/// asked, not for each request.
pub fn start(json: bool) {
    let filter = EnvFilter::try_from_env("TOMBOLO_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,boringtun=warn,kube_client=off"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(true);
    // A second start in one process (a test that runs two parts) keeps the first.
    let _ = if json { lines.json().try_init() } else { lines.with_ansi(false).try_init() };
}
