//! What peers may connect to: [`gateway_core::export_index`] thinks.

pub(crate) use gateway_core::export_index::{ExportIndex, key_of};
