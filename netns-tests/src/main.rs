//! The programs that run inside a world's hosts: Tombolo itself, and traffic tools for tests and for people who step in.

mod tools;

use std::process::ExitCode;
use std::thread::park;

use anyhow::{Context, Result, bail};
use netns_tests::traffic::{http, stream, udp};
use netns_tests::{World, world};
use nix::mount::{MsFlags, mount};

const USAGE: &str = "tombolo-world: clusters on one machine

  stand                                           make three clusters and keep them until interrupted

Inside a node or a pod:
  tombolo ...                                     Tombolo, as built from this source
  get ADDRESS:PORT [--count N]                    ask over HTTP and count who answers
  ping ADDRESS                                    ICMP echo
  echo ADDRESS:PORT [--count N] [--size BYTES]    UDP there and back
  download ADDRESS:PORT [--seconds N]             how long was the flow silent?
  dns SERVER:PORT NAME [TYPE]                     ask a DNS server
  serve-http --port P --pod NAME --cluster NAME   answer HTTP with these names
  serve-stream --port P                           send a little every 5 ms to whoever connects
  serve-bulk --port P                             send 13 Mbit/s to whoever connects
  serve-udp-echo --port P                         send datagrams back
  mount-over FILE TARGET                          put FILE over TARGET in this mount namespace";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    run(&arguments).unwrap_or_else(|error| {
        eprintln!("tombolo-world: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(arguments: &[String]) -> Result<ExitCode> {
    let Some((command, rest)) = arguments.split_first() else { bail!("{USAGE}") };
    match command.as_str() {
        "tombolo" => return Ok(cli::run(std::env::args_os().skip(1))),
        "stand" => return world::inside(|| stand().unwrap_or_else(|error| tools::failure(&error))),
        "get" => return tools::get(rest),
        "ping" => return tools::ping(rest),
        "echo" => return tools::echo(rest),
        "download" => return tools::download(rest),
        "dns" => return tools::dns(rest),
        "serve-http" => {
            let (pod, cluster) = (tools::option(rest, "--pod"), tools::option(rest, "--cluster"));
            http::serve(port(rest)?, pod.context("--pod is missing")?, cluster.context("--cluster is missing")?)?;
        }
        "serve-stream" => stream::serve(port(rest)?)?,
        "serve-bulk" => stream::serve_bulk(port(rest)?)?,
        "serve-udp-echo" => udp::serve_echo(port(rest)?)?,
        "mount-over" => mount_over(rest)?,
        "--help" | "help" => println!("{USAGE}"),
        _ => bail!("{command} is no command of tombolo-world\n\n{USAGE}"),
    }
    Ok(ExitCode::SUCCESS)
}

fn port(arguments: &[String]) -> Result<u16> {
    tools::option(arguments, "--port").context("--port is missing")?.parse().context("--port takes 1 to 65535")
}

/// Three clusters without Tombolo, each with a server and a client pod, to look around in.
fn stand() -> Result<ExitCode> {
    let world = World::create()?;
    for name in ["amber", "birch", "cedar"] {
        let cluster = world.cluster(name)?;
        cluster.worker()?.pod("web")?.serve_http()?;
        cluster.worker()?.pod("client")?;
    }
    for host in world.hosts() {
        println!("{:<16} {}", host.name(), host.step_in());
    }
    println!("the world stands");
    // An interrupt ends this process, and with it the world.
    loop {
        park();
    }
}

fn mount_over(arguments: &[String]) -> Result<()> {
    let [file, target] = arguments else { bail!("mount-over takes a file and a target") };
    mount(Some(file.as_str()), target.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("putting {file} over {target}; the target must exist as a file"))
}
