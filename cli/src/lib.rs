//! The one binary, `tombolo`: runs each part and is the operator's tool.
//!
//! [`arguments`] is what was typed. A part is put together in [`parts`], which also serves its surface
//! ([`serve`]) to `/metrics`, to health checks and to the commands that ask ([`ask`]). Each command is a module that
//! takes the parts' answers and returns what to print and how to end ([`output`]).

pub mod arguments;
pub mod ask;
pub mod cleanup;
pub mod confirmation;
pub mod crds;
pub mod drain;
pub mod duration;
pub mod exposition;
pub mod gather;
pub mod history;
pub mod identity;
pub mod join;
pub mod keys;
pub mod logging;
pub mod names;
pub mod output;
pub mod parts;
pub mod path;
pub mod peers;
mod rotation;
pub mod running;
pub mod serve;
pub mod services;
pub mod status;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::arguments::{Arguments, Command, DrainPart, Explain, IdentityCommand, KeysCommand, PeersCommand};
use crate::output::Outcome;

/// Runs `tombolo` with these arguments, the program's name first.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Asking for help is no error; both are printed where they belong.
            let code = error.exit_code();
            let _ = error.print();
            return ExitCode::from(u8::try_from(code).unwrap_or(Outcome::Usage as u8));
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start: {error}\n  are threads or file descriptors exhausted on this host?");
            return Outcome::CouldNotFindOut.into();
        }
    };
    match runtime.block_on(execute(arguments)) {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            eprintln!("{error:#}");
            Outcome::FoundBad.into()
        }
    }
}

async fn execute(arguments: Arguments) -> anyhow::Result<Outcome> {
    let run_dir = arguments.place.run_dir.as_path();
    match arguments.command {
        Command::Status(shown) => status::run(run_dir, shown.format).await,
        Command::Peers { action: Some(PeersCommand::Export), .. } => peers::export(run_dir).await,
        Command::Peers { action: Some(PeersCommand::Drain { peer, drain }), .. } => {
            drain::run(run_dir, drain::Subject::Drained(peer), &drain).await
        }
        Command::Peers { action: Some(PeersCommand::Block { peer, drain }), .. } => {
            drain::run(run_dir, drain::Subject::Blocked(peer), &drain).await
        }
        Command::Drain { part: Some(DrainPart::Gateway { slot, drain }), .. } => {
            drain::run(run_dir, drain::Subject::Gateway(slot), &drain).await
        }
        Command::Drain { part: Some(DrainPart::Node { node, drain }), .. } => {
            drain::run(run_dir, drain::Subject::Node(node), &drain).await
        }
        Command::Drain { part: None, drain } => drain::run(run_dir, drain::Subject::Ourselves, &drain).await,
        Command::Identity { action: IdentityCommand::Rotate(identity) } => {
            identity::run(run_dir, &identity, false).await
        }
        Command::Identity { action: IdentityCommand::Retire(identity) } => {
            identity::run(run_dir, &identity, true).await
        }
        Command::Keys { action: KeysCommand::Rotate(keys) } => keys::run(run_dir, &keys, false).await,
        Command::Keys { action: KeysCommand::Retire(keys) } => keys::run(run_dir, &keys, true).await,
        Command::Peers { action: None, shown } => peers::run(run_dir, shown.format).await,
        Command::Services(shown) => services::list(run_dir, shown.format).await,
        Command::Explain { what: Explain::Service { service, shown } } => {
            services::explain(run_dir, &service, shown.format).await
        }
        Command::Explain { what: Explain::Dns { name, record_type, shown } } => {
            names::explain(run_dir, &name, &record_type, shown.format).await
        }
        Command::Explain { what: Explain::Path { peer, shown } } => path::explain(run_dir, &peer, shown.format).await,
        Command::Ping { peer, shown } => path::ping(run_dir, &peer, shown.format).await,
        Command::Events { since, shown } => history::events(run_dir, since, shown.format).await,
        Command::Refusals(shown) => history::refusals(run_dir, shown.format).await,
        Command::Join(arguments) => join::run(&arguments).await,
        Command::Gather(arguments) => gather::run(run_dir, &arguments).await,
        Command::Crds => crds::print(),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "tombolo", &mut std::io::stdout());
            Ok(Outcome::Good)
        }
        Command::Run(arguments) => parts::run(run_dir, arguments).await,
        Command::Controller(arguments) => parts::controller(run_dir, arguments).await,
        Command::Gateway(arguments) => parts::gateway(run_dir, arguments).await,
        Command::Node(arguments) => parts::node(run_dir, arguments).await,
        Command::Dns(arguments) => parts::dns(run_dir, arguments).await,
        Command::Cleanup { dry_run, yes, state, shown } => {
            cleanup::run(run_dir, &state, cleanup::Way { dry_run, yes }, shown.format).await
        }
    }
}
