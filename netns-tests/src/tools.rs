//! The traffic clients as commands: what `curl`, `ping` and `dig` would do, where they are not installed.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use hickory_proto::rr::RecordType;
use netns_tests::traffic::stream::Download;
use netns_tests::traffic::{dns as dns_client, http, icmp, udp};

/// A person waits this long for an answer.
const LIMIT: Duration = Duration::from_secs(2);

/// The value that follows `name` among the arguments.
pub(crate) fn option<'a>(arguments: &'a [String], name: &str) -> Option<&'a str> {
    let place = arguments.iter().position(|argument| argument == name)?;
    arguments.get(place + 1).map(String::as_str)
}

pub(crate) fn failure(error: &anyhow::Error) -> ExitCode {
    eprintln!("tombolo-world: {error:#}");
    ExitCode::FAILURE
}

pub(crate) fn get(arguments: &[String]) -> Result<ExitCode> {
    let tally = http::ask_many(target(arguments)?, number(arguments, "--count", 1)?, LIMIT);
    for (pod, count) in &tally.pods {
        println!("{count:>6}  {pod}");
    }
    if tally.answered() > 0 {
        println!("        median {:?}, p99 {:?}", tally.percentile(0.5), tally.percentile(0.99));
    }
    for failure in &tally.failures {
        println!("        {failure}");
    }
    Ok(code(tally.failed == 0))
}

pub(crate) fn ping(arguments: &[String]) -> Result<ExitCode> {
    let target = arguments.first().context("ping takes an address")?.parse().context("ping takes an address")?;
    let took = icmp::ask(target, LIMIT)?;
    match took {
        Some(took) => println!("{target} answered in {took:?}"),
        None => println!("{target} did not answer within {LIMIT:?}"),
    }
    Ok(code(took.is_some()))
}

pub(crate) fn echo(arguments: &[String]) -> Result<ExitCode> {
    let (count, size) = (number(arguments, "--count", 1)?, number(arguments, "--size", 64)?);
    let echoes = udp::ask(target(arguments)?, count, size, LIMIT)?;
    println!("{} of {} answered {}", echoes.answered, echoes.sent, echoes.error.unwrap_or_default());
    Ok(code(echoes.answered == echoes.sent))
}

pub(crate) fn download(arguments: &[String]) -> Result<ExitCode> {
    let seconds = number(arguments, "--seconds", 10)?;
    let download = Download::ask(target(arguments)?, LIMIT)?;
    std::thread::sleep(Duration::from_secs(seconds as u64));
    let flow = download.stop();
    let ended = flow.ended.as_deref().map(|why| format!(", ended: {why}")).unwrap_or_default();
    println!("{} bytes, longest silence {:?}{ended}", flow.bytes, flow.longest_silence);
    Ok(code(flow.ended.is_none()))
}

pub(crate) fn dns(arguments: &[String]) -> Result<ExitCode> {
    let name = arguments.get(1).context("dns takes a server and a name")?;
    let kind = arguments.get(2).map_or("A", String::as_str);
    let kind = RecordType::from_str(kind).with_context(|| format!("{kind} is no record type"))?;
    let answer = dns_client::ask(target(arguments)?, name, kind, dns_client::Transport::UdpWithEdns, LIMIT)?;
    println!("{}", answer.metadata.response_code);
    for record in answer.answers.iter().chain(&answer.authorities) {
        println!("{record}");
    }
    Ok(ExitCode::SUCCESS)
}

fn target(arguments: &[String]) -> Result<SocketAddr> {
    let target = arguments.first().context("the address is missing")?;
    target.parse().with_context(|| format!("{target} is not ADDRESS:PORT (IPv6 in brackets)"))
}

fn number(arguments: &[String], name: &str, otherwise: usize) -> Result<usize> {
    let Some(value) = option(arguments, name) else { return Ok(otherwise) };
    value.parse().with_context(|| format!("{name} takes a number, not {value}"))
}

fn code(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
