//! [`Surface`]: what every part shows to its operator, whatever the part.

use alloc::string::String;
use alloc::vec::Vec;

/// Whether a part does its work, and if not, what it waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// What is still awaited, as an operator would say it: `first state from the controller`. Empty when ready.
    pub awaiting: Vec<String>,
}

impl Readiness {
    pub fn is_ready(&self) -> bool {
        self.awaiting.is_empty()
    }
}

/// What a running part answers to `/readyz`, `/metrics` and the questions of the command line tool.
///
/// `cli` serves it over HTTP on a unix socket in the run folder, and on a TCP port where one is asked for.
pub trait Surface: Send + Sync {
    fn readiness(&self) -> Readiness;

    /// All metrics in the OpenMetrics text format.
    fn metrics(&self) -> String;

    /// The answer to a question such as `status`, `refusals` or `events?since=3600`, as JSON; `None` for a question
    /// this part does not know.
    fn answer(&self, question: &str) -> Option<serde_json::Value>;

    /// Does what the operator orders, such as `peer-state?peer=birch&state=Drained`: what became of it as JSON, or why it
    /// is refused and what to do. `None` for an order this part does not know. May take as long as a write does.
    fn order(&self, order: &str) -> Option<Result<serde_json::Value, String>> {
        let _ = order;
        None
    }
}
