//! Who is in the clusterset: [`gateway_core::roster`] thinks.

pub(crate) use gateway_core::roster::{Roster, own_control_prefix};
