//! Netlink: links, routes, next hops, rules, nftables, tracked connections, as differences.
//!
//! [`Kernel`] reads what of ours is in the kernel ([`Kernel::observe`]) and applies the changes that
//! [`kernel_core::difference`] makes of it ([`Kernel::apply`]). It blocks, for as long as the kernel takes, and belongs
//! to one owner, which calls it from a thread of its own. A [`Lookout`] looks from another thread.
//!
//! ```no_run
//! # fn main() -> Result<(), kernel::Error> {
//! use kernel::{Kernel, core};
//!
//! let mut kernel = Kernel::open(std::path::Path::new("/var/lib/tombolo/settings"))?;
//! let wanted = core::State::default();
//! let observed = kernel.observe()?;
//! let outcome = kernel.apply(&core::difference(&wanted, &observed));
//! for failure in &outcome.failures {
//!     eprintln!("{}", failure.error);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Everything of ours is found again without a record: the table `inet tombolo`; routes, rules, next hops and addresses
//! with [`kernel_core::PROTOCOL`]; VXLAN links whose names begin with [`kernel_core::link::NAME_PREFIX`]. Only the old
//! values of settings that are not ours need a file.

mod address;
mod connection;
mod counter;
mod device;
mod error;
mod lookout;
mod message;
mod neighbour;
mod nexthop;
mod owner;
mod path;
mod queue;
mod refused;
mod route;
mod rule;
mod setting;
mod socket;
mod table;
mod watch;

#[cfg(test)]
mod tests;

pub use kernel_core as core;

pub use connection::{Flow, flows};
pub use counter::{Counted, Counter};
pub use device::Device;
pub use error::Error;
pub use lookout::{Lookout, Seen};
pub use owner::{Failure, Kernel, Outcome};
pub use path::{Hop, Path, Routed};
pub use refused::{RefusalLog, Refused};
pub use watch::{DeviceEvent, DeviceWatch};
