//! Which cluster answers: endpoints, policy, health and the time in; shares and reasons out.
//!
//! One pure function, [`decide`], is asked by the node for its tables, by DNS for headless names, by the controller for
//! statuses and by `tombolo explain`. All of them get the same answer to the same question.
//!
//! # From policy to shares
//!
//! 1. **One policy speaks**: an override of a ClusterRoutingPolicy, else the namespace's RoutingPolicy, else a default of
//!    a ClusterRoutingPolicy, else [local first](policy_set::Source::LocalFirst). See [`PolicySet::policy_for`].
//! 2. **A cluster can serve** when it is reachable (the local one always is), not drained, not draining, and has a ready
//!    endpoint for this very port. One that fell silent and came back has to prove itself for a second, and one may be left
//!    with gateways alone that are going away: both are used only where nobody else can serve. See
//!    [`Clusters::standing`].
//! 3. **Tiers in order**: the first tier with a cluster that can serve does. A cluster belongs to the first tier that
//!    selects it. A cluster that no tier selects is never used, and when no tier can serve, nobody does: traffic never
//!    goes where the policy did not send it.
//! 4. **Inside a tier** traffic is shared by weight among those that can serve. Weight 0 gets nothing, also when it is
//!    alone. `Nearest` gives all of it to the lowest round-trip time; the one in use stays until another is better by
//!    20 % and by 1 ms.
//! 5. **Spill**: a tier that asks for N ready endpoints (or N % of all its endpoints, rounded up) and has R of them keeps
//!    R/N of what it was given; the next tier that can serve gets the rest, under the same rule. If none can, the rest
//!    comes back.
//!
//! # From shares to slots
//!
//! A cluster's share is divided evenly among its ready endpoints; [`slots`](mod@slots) turns that into a table that a
//! kernel can draw from.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod clusters;
pub mod decision;
mod fraction;
pub mod gateway_reports;
pub mod policy_set;
pub mod slots;
mod tiers;

pub use clusters::{Cluster, Clusters, Strangers};
pub use decision::{Decision, Memory, Reason, Share, Standing, Verdict};
pub use gateway_reports::GatewayReports;
pub use policy_set::{Affected, PolicySet, Source};
pub use tiers::{EndpointCount, EndpointCounts, Question, decide};
