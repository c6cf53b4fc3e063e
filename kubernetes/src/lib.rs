//! Real Kubernetes control planes for tests. No fakes: the API server, its storage and its controllers are Kubernetes' own
//! programs, built from the Go module in `kubernetes/programs` or taken from `KUBEBUILDER_ASSETS`.
//!
//! | module | is |
//! |---|---|
//! | `programs` | where the programs are, and how they are built once |
//! | `authority` | a certificate authority of a test cluster |
//! | `control_plane` | the files and the command lines of one cluster's control plane |
//! | `running` | one that runs on this host, on free ports, until it is dropped |
//!
//! A test that has network namespaces takes the command lines of a [`ControlPlane`] and runs them on its hosts; one that
//! only needs an API server calls [`Running::start`].

mod authority;
mod control_plane;
mod programs;
mod running;

pub use control_plane::{Addresses, ControlPlane, Part, SERVICE_RANGES};
pub use programs::{ASSETS_VARIABLE, FOLDER_VARIABLE, Program, Programs, VERSION, find_go};
pub use running::{Running, client_of};
