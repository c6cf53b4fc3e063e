//! The programs that run inside a world's hosts, and those that make a world of their own.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use netns_tests::traffic::{http, stream, udp};
use nix::mount::{MsFlags, mount};

const USAGE: &str = "tombolo-world: clusters on one machine

  serve-http --port P --pod NAME --cluster NAME   answer HTTP with these names
  serve-stream --port P                           send a little every 5 ms to whoever connects
  serve-udp-echo --port P                         send datagrams back
  mount-over FILE TARGET                          put FILE over TARGET in this mount namespace";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tombolo-world: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<ExitCode> {
    let Some((command, rest)) = arguments.split_first() else { bail!("{USAGE}") };
    match command.as_str() {
        "serve-http" => http::serve(port(rest)?, option(rest, "--pod")?, option(rest, "--cluster")?)?,
        "serve-stream" => stream::serve(port(rest)?)?,
        "serve-udp-echo" => udp::serve_echo(port(rest)?)?,
        "mount-over" => mount_over(rest)?,
        _ => bail!("{command} is no command of tombolo-world\n\n{USAGE}"),
    }
    Ok(ExitCode::SUCCESS)
}

fn option<'a>(arguments: &'a [String], name: &str) -> Result<&'a str> {
    let value = arguments.iter().position(|argument| argument == name).and_then(|at| arguments.get(at + 1));
    value.map(String::as_str).with_context(|| format!("{name} is missing"))
}

fn port(arguments: &[String]) -> Result<u16> {
    option(arguments, "--port")?.parse().context("--port takes 1 to 65535")
}

fn mount_over(arguments: &[String]) -> Result<()> {
    let [file, target] = arguments else { bail!("mount-over takes a file and a target") };
    mount(Some(file.as_str()), target.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("putting {file} over {target}; the target must exist as a file"))
}
