//! docs/plain-hosts.md, run as it is written.
//!
//! One kind of substitution only: `/etc/tombolo`, the state folder and `/tmp` lie in each host's own `/run`, for a sandbox
//! without root shares the machine's folders.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netns_tests::firewall::Port;
use netns_tests::host::own_program;
use netns_tests::scenario::three_clusters::PATIENCE;
use netns_tests::traffic::http;
use netns_tests::{ClusterPlan, Node, World, world_test};

/// In place of `/var/lib/tombolo`.
const STATE: &str = "/run/state";

const PAGE: &str = include_str!("../../docs/plain-hosts.md");

/// One block of the page: on which host, whether in the background, and its text.
struct Block<'a> {
    host: &'a str,
    background: bool,
    text: String,
}

fn blocks() -> Vec<Block<'static>> {
    let mut blocks = Vec::new();
    let mut lines = PAGE.lines();
    while let Some(line) = lines.next() {
        let Some(words) = line.strip_prefix("```sh ") else { continue };
        let mut words = words.split(' ');
        let host = words.next().unwrap_or_default();
        let text: String = lines.by_ref().take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect();
        blocks.push(Block { host, background: words.next() == Some("background"), text });
    }
    blocks
}

/// The host's own folders in place of the machine's.
fn in_sandbox(text: &str) -> String {
    let text = text.replace("/etc/tombolo", "/run/etc-tombolo").replace("/var/lib/tombolo", STATE);
    text.replace("/tmp/", "/run/shared/")
}

fn shell(node: &Node, text: &str) -> Result<Command> {
    let tools = node.run_folder().join("bin");
    std::fs::create_dir_all(&tools)?;
    let tombolo = tools.join("tombolo");
    std::fs::write(&tombolo, format!("#!/bin/sh\nexec {} tombolo \"$@\"\n", own_program()?.display()))?;
    std::fs::set_permissions(&tombolo, std::fs::Permissions::from_mode(0o755))?;
    let mut command = Command::new("/bin/sh");
    let path = std::env::var("PATH").unwrap_or_default();
    command.args(["-eu", "-c", &in_sandbox(text)]).env("PATH", format!("/run/bin:{path}")).env("TOMBOLO_STATE", STATE);
    Ok(command)
}

/// Runs a block to its end. A command that asks may ask too early: what it waits for has a limit, not a moment.
fn run(node: &Node, text: &str) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let output = node.output_of(shell(node, text)?, PATIENCE)?;
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() {
            return Ok(said);
        }
        ensure!(Instant::now() < deadline, "{}: {text}\n{said}", node.name());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The ports of the page's table that a host must let in, by the words of its second column.
fn ports(of: impl Fn(&str) -> bool) -> Result<Vec<Port>> {
    let rows = PAGE.lines().filter_map(|line| {
        let (port, rest) = line.strip_prefix("| ")?.split_once(" | ")?;
        let (protocol, port) = port.split_once(' ')?;
        let port = port.parse().ok()?;
        let port =
            [("TCP", Port::Tcp(port)), ("UDP", Port::Udp(port))].into_iter().find(|(name, _)| *name == protocol)?;
        Some((port.1, rest.split(" | ").next()?))
    });
    let rows: Vec<(Port, &str)> = rows.collect();
    let known = ["a gateway's host", "the controller's host", "a DNS server's host", "every host"];
    for (port, on) in &rows {
        ensure!(known.contains(on), "the page wants {port:?} open on '{on}', which this test does not know");
    }
    ensure!(!rows.is_empty(), "the page has no table of ports");
    Ok(rows.into_iter().filter(|(_, on)| of(on)).map(|(port, _)| port).collect())
}

#[test]
fn the_page_about_plain_hosts_works_as_it_is_written() {
    world_test(|world| {
        let plan = ClusterPlan { gateways: 1, workers: 0, ..ClusterPlan::default() };
        let (oaks, elm) =
            (world.cluster_with("oak", ClusterPlan { workers: 1, ..plan })?, world.cluster_with("elm", plan)?);
        let (oak, oak2, elm) = (oaks.gateway()?.clone(), oaks.worker()?.clone(), elm.gateway()?.clone());
        let (client, server) = (oak.pod("client")?, elm.pod("web")?);
        let second_client = oak2.pod("client-2")?;
        addresses_are_those_of_the_page(world, &oak, &server.addresses().both())?;
        // As the page wants it, and nothing else: oak and elm run every part, oak2 only the node agent.
        for (node, ports) in
            [(&oak, ports(|_| true)?), (&elm, ports(|_| true)?), (&oak2, ports(|on| on == "every host")?)]
        {
            node.add_input_firewall(&ports)?;
            node.add_forward_firewall()?;
        }
        let mut services = Vec::new();
        server.serve_http()?;
        for block in blocks() {
            let node = match block.host {
                "oak" => &oak,
                "oak2" => &oak2,
                "elm" => &elm,
                other => bail!("the page speaks of a host {other}"),
            };
            if block.background {
                // In place of the shell, as an init system would: signals reach it.
                node.start("run", shell(node, &format!("exec {}", block.text))?)?;
                continue;
            }
            let said = run(node, &block.text)?;
            if block.text.contains("explain dns") {
                let address = said.split_whitespace().rev().find_map(|word| word.parse::<IpAddr>().ok());
                let target = SocketAddr::new(address.with_context(|| format!("no address in: {said}"))?, 80);
                let answer = http::get_within(&client, target, PATIENCE)?;
                ensure!(answer.pod == "web", "answered by {answer:?}");
                services.push(target);
            }
            if block.host == "oak2" && block.text.contains("tombolo services") {
                for target in &services {
                    let answer = http::get_within(&second_client, *target, PATIENCE)?;
                    let own = second_client.addresses().both();
                    ensure!(answer.pod == "web" && own.contains(&answer.client), "{answer:?} is not {own:?}");
                }
                ensure!(!services.is_empty(), "the page exports nothing before its second host");
            }
            if block.text.contains("tombolo cleanup") {
                let links = oak.links("what is left", async |links| links.get_links().await)?;
                let names: Vec<&str> = links.iter().filter_map(|link| link.name()).collect();
                ensure!(!names.iter().any(|name| name.contains("vxlan")), "left behind: {names:?}");
            } else if block.host == "oak" && block.text.contains("tombolo status") {
                for process in oak.processes().iter() {
                    process.terminate(PATIENCE)?;
                }
            }
        }
        Ok(())
    });
}

fn addresses_are_those_of_the_page(_: &World, oak: &Node, server: &[IpAddr]) -> Result<()> {
    for address in oak.addresses().both().iter().chain(server) {
        ensure!(PAGE.contains(&address.to_string()), "{address} does not stand in docs/plain-hosts.md");
    }
    Ok(())
}
