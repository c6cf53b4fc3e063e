//! What a person needs who looks at a failed test: how to step in, what was logged, what the kernel has.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use nlink::netlink::messages::{AddressMessage, LinkMessage, RouteMessage, RuleMessage};

use crate::host::Host;

/// Lines of each process's log.
const LOG_LINES: usize = 20;
/// A program that hangs must not keep the rest of the evidence back.
const PROGRAM_LIMIT: Duration = Duration::from_secs(5);
/// A listing longer than this hides the rest of the evidence.
const LISTING_LINES: usize = 120;

/// Prints the evidence of every host to standard error.
pub fn print(hosts: &[Host]) {
    eprintln!("── evidence ──");
    for host in hosts {
        eprint!("{}", of(host));
    }
}

/// The evidence of one host, as text.
pub fn of(host: &Host) -> String {
    let mut text = format!("● {}    {}\n", host.name(), host.step_in());
    for process in host.processes().iter() {
        let state = if process.is_running() { "running" } else { "ended" };
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "  {} ({}, {state})", process.label(), process.number());
        text.push_str(&process.last_lines(LOG_LINES));
    }
    match host.links("reading the kernel's state", async |links| {
        let names = links.get_links().await?;
        let addresses = links.get_addresses().await?;
        let routes = links.get_routes().await?;
        let rules = links.get_rules().await?;
        Ok((names, addresses, routes, rules))
    }) {
        Ok((links, addresses, routes, rules)) => {
            list(&mut text, "links", links.iter().map(|link| show_link(link, &addresses)));
            list(
                &mut text,
                "routes",
                routes.iter().filter(|route| !is_local(route)).map(|route| show_route(route, &links)),
            );
            list(&mut text, "rules", rules.iter().filter(|rule| !is_born_with(rule)).map(show_rule));
        }
        Err(error) => {
            let _ = writeln!(text, "  kernel state unknown: {error:#}");
        }
    }
    list(&mut text, "nftables", nftables(host).lines().map(str::to_owned));
    list(&mut text, "counters", counters(host).into_iter());
    text
}

fn list(text: &mut String, title: &str, lines: impl Iterator<Item = String>) {
    let lines: Vec<String> = lines.collect();
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(text, "  {title}:");
    for line in lines.iter().take(LISTING_LINES) {
        let _ = writeln!(text, "    {line}");
    }
    if lines.len() > LISTING_LINES {
        let _ = writeln!(text, "    … and {} more", lines.len() - LISTING_LINES);
    }
}

fn show_link(link: &LinkMessage, addresses: &[AddressMessage]) -> String {
    let own: Vec<String> = addresses
        .iter()
        .filter(|address| address.ifindex() == link.ifindex())
        .filter_map(|address| Some(format!("{}/{}", address.address()?, address.prefix_len())))
        .collect();
    let state = if link.is_up() { "up" } else { "DOWN" };
    let carrier = if link.has_carrier() { "" } else { " no carrier" };
    format!("{} {state}{carrier} mtu {} {}", link.name_or("?"), link.mtu().unwrap_or(0), own.join(" "))
}

fn show_route(route: &RouteMessage, links: &[LinkMessage]) -> String {
    let to = route.destination().map_or_else(|| "default".to_owned(), |to| format!("{to}/{}", route.dst_len()));
    let mut text = format!("table {} {:?} {to}", route.table_id(), route.route_type());
    if let Some(by) = route.gateway() {
        let _ = write!(text, " via {by}");
    }
    if let Some(index) = route.oif() {
        let name = links.iter().find(|link| link.ifindex() == index).map_or("?", |link| link.name_or("?"));
        let _ = write!(text, " dev {name}");
    }
    if let Some(metric) = route.priority() {
        let _ = write!(text, " metric {metric}");
    }
    text
}

/// The kernel's own table of its own addresses, which the list of links shows already.
fn is_local(route: &RouteMessage) -> bool {
    const LOCAL_TABLE: u32 = 255;
    route.table_id() == LOCAL_TABLE
}

fn show_rule(rule: &RuleMessage) -> String {
    let mut text = format!("{}: {:?}", rule.priority(), rule.family_typed());
    if rule.is_invert() {
        text.push_str(" not");
    }
    if let Some(from) = rule.source() {
        let _ = write!(text, " from {from}/{}", rule.src_len());
    }
    if let Some(to) = rule.destination() {
        let _ = write!(text, " to {to}/{}", rule.dst_len());
    }
    if let Some(mark) = rule.fwmark() {
        let _ = write!(text, " fwmark {mark:#x}/{:#x}", rule.fwmask().unwrap_or(u32::MAX));
    }
    if let Some(interface) = rule.iifname() {
        let _ = write!(text, " iif {interface}");
    }
    if let Some(interface) = rule.oifname() {
        let _ = write!(text, " oif {interface}");
    }
    let _ = write!(text, " {:?} {}", rule.action(), rule.table_id());
    text
}

/// The rules that every namespace is born with, those for multicast included.
fn is_born_with(rule: &RuleMessage) -> bool {
    [0, 32_766, 32_767].contains(&rule.priority()) || !(rule.is_ipv4() || rule.is_ipv6())
}

/// By the `nft` program where there is one, else the names of tables and chains.
fn nftables(host: &Host) -> String {
    let mut command = Command::new("nft");
    command.args(["list", "ruleset"]);
    if let Ok(output) = host.output_of(command, PROGRAM_LIMIT) {
        return String::from_utf8_lossy(&output.stdout).into_owned();
    }
    let chains = host.rules("reading nftables", async |rules| rules.list_chains().await);
    match chains {
        Ok(chains) if chains.is_empty() => String::new(),
        Ok(chains) => chains.iter().fold("(install nft to see the rules)\n".to_owned(), |mut text, chain| {
            let _ = writeln!(text, "table {} chain {}", chain.table, chain.name);
            text
        }),
        Err(error) => format!("unknown: {error:#}"),
    }
}

/// The kernel's counters that are not zero and tell of something refused, lost or wrong.
fn counters(host: &Host) -> Vec<String> {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
    let Ok((v4, v6, devices)) = host.run(|| (read("snmp"), read("snmp6"), read("dev"))) else {
        return vec!["unknown: the namespace is gone".into()];
    };
    let mut found = Vec::new();
    // /proc/net/snmp has pairs of lines: names, then values.
    let lines: Vec<&str> = v4.lines().collect();
    for pair in lines.chunks_exact(2) {
        let names = pair[0].split_whitespace().skip(1);
        let values = pair[1].split_whitespace().skip(1);
        let protocol = pair[0].split(':').next().unwrap_or("");
        found.extend(names.zip(values).map(|(name, value)| format!("{protocol}{name} {value}")));
    }
    found.extend(v6.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")));
    found.retain(|line| tells_of_trouble(line));
    found.extend(devices.lines().skip(2).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")));
    found
}

fn tells_of_trouble(counter: &str) -> bool {
    let trouble = ["Error", "Discard", "NoRoute", "Unreach", "TooBig", "Fails", "NoPorts", "RetransSegs"];
    !counter.ends_with(" 0") && trouble.iter().any(|word| counter.contains(word))
}
