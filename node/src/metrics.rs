//! Numbers the agent keeps while it runs.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::connections::Connections;

/// From a single element to the first load of 10,000 services.
const APPLY_SECONDS: [f64; 8] = [0.000_5, 0.001, 0.003, 0.01, 0.03, 0.1, 0.5, 2.0];

pub(crate) struct Metrics {
    /// Found at the last look at everything, and mended.
    pub(crate) kernel_differences: Gauge,
    /// Changes the kernel refused.
    pub(crate) kernel_failures: Counter,
    pub(crate) apply_seconds: Histogram,
    pub(crate) connections: Connections,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            kernel_differences: Gauge::default(),
            kernel_failures: Counter::default(),
            apply_seconds: Histogram::new(APPLY_SECONDS),
            connections: Connections::default(),
        }
    }
}

impl Metrics {
    pub(crate) fn applied_in(&self, time: Duration) {
        self.apply_seconds.observe(time.as_secs_f64());
    }
}
