//! The one binary, `tombolo`: runs each part and is the operator's tool.
//!
//! [`arguments`] is what was typed. A part is put together in [`parts`], which also serves its surface
//! ([`serve`]) to `/metrics`, to health checks and to the commands that ask ([`ask`]). Each command is a module that
//! takes the parts' answers and returns what to print and how to end ([`output`]).

pub mod arguments;
pub mod ask;
pub mod crds;
pub mod duration;
pub mod logging;
pub mod output;
pub mod serve;

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs `tombolo` with these arguments, the program's name first.
pub fn run(_arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    ExitCode::SUCCESS
}
