//! The world itself: what other tests rely on.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::host::own_program;
use netns_tests::sandbox::is_inside;
use netns_tests::traffic::stream::Download;
use netns_tests::traffic::{http, icmp, udp};
use netns_tests::{Capture, ClusterPlan, World, world_test};

/// More than anything here takes on a busy core.
const LIMIT: Duration = Duration::from_secs(10);
/// Long enough for an answer that would come, short enough to wait for one that must not.
const SILENCE: Duration = Duration::from_millis(300);

const THREE: [&str; 3] = ["amber", "birch", "cedar"];
/// The user that owns nothing, by its usual number.
const NOBODY: u32 = 65_534;

#[test]
fn pods_of_one_cluster_reach_each_other_and_gateways_of_all() {
    world_test(|world| these_clusters_work(world, THREE));
}

#[test]
fn a_second_world_with_the_same_addresses_works_at_the_same_time() {
    world_test(|world| these_clusters_work(world, THREE));
}

#[test]
fn a_packet_for_a_pod_of_another_cluster_is_seen_leaving_in_clear_text() {
    world_test(|world| {
        let (amber, birch) = (world.cluster("amber")?, world.cluster("birch")?);
        let (client, server) = (amber.worker()?.pod("client")?, birch.worker()?.pod("server")?);
        for target in server.addresses().both() {
            let capture = Capture::of_clear_text(amber.router(), vec![birch.ranges().pods()])?;
            ensure!(icmp::ping_once(&client, target, SILENCE)?.is_none(), "nothing should carry it yet");
            let seen = capture.stop()?;
            ensure!(seen.lost == 0 && seen.wanted >= 2, "in and out of the router: {seen:?}");
            let (from, to) = seen.packets[0].addresses().context("no IP packet")?;
            ensure!(to == target && client.addresses().both().contains(&from), "{from} → {to}");
        }
        Ok(())
    });
}

#[test]
fn cuts_are_silent_and_mended_and_may_be_one_way() {
    world_test(|world| {
        let (amber, birch) = (world.cluster("amber")?, world.cluster("birch")?);
        let (here, there) = (amber.gateway()?, birch.gateway()?);
        for target in there.addresses().both() {
            icmp::ping(here, target)?;
            world.cut_one_way(&birch, &amber)?;
            let arrives = Capture::start(there, move |packet| {
                !packet.outgoing && packet.addresses().is_some_and(|(_, to)| to == target)
            })?;
            ensure!(icmp::ping_once(here, target, SILENCE)?.is_none(), "the answer should be lost");
            arrives.wait_for(1, LIMIT)?;
            world.mend(&amber, &birch)?;
            icmp::ping(here, target)?;
            amber.cut_off()?;
            ensure!(icmp::ping_once(here, target, SILENCE)?.is_none(), "amber is cut off");
            amber.reconnect()?;
            icmp::ping(here, target)?;
        }
        Ok(())
    });
}

#[test]
fn a_node_can_be_mute_or_deaf_or_unplugged_in_its_own_lan() {
    world_test(|world| {
        let amber = world.cluster("amber")?;
        let (gateway, worker) = (amber.gateway()?, amber.worker()?);
        for target in worker.addresses().both() {
            icmp::ping(gateway, target)?;
            for trouble in [netns_tests::Node::mute, netns_tests::Node::deafen, netns_tests::Node::cut_off] {
                trouble(worker)?;
                ensure!(icmp::ping_once(gateway, target, SILENCE)?.is_none(), "the worker is in trouble");
                worker.reconnect()?;
                icmp::ping(gateway, target)?;
            }
            worker.router_port().unplug()?;
            ensure!(icmp::ping_once(gateway, target, SILENCE)?.is_none(), "the worker is unplugged");
            worker.router_port().plug_in()?;
            icmp::ping(gateway, target)?;
        }
        Ok(())
    });
}

#[test]
fn loss_loses_about_what_it_should() {
    world_test(|world| {
        let (amber, birch) = (world.cluster("amber")?, world.cluster("birch")?);
        birch.gateway()?.start_tool("echo", &["serve-udp-echo", "--port", "7"])?.wait_for_line("listening", LIMIT)?;
        let target = birch.gateway()?.addresses().with_port(7)[0];
        world.lose(&amber, &birch, 30.0)?;
        let echoes = udp::echo(amber.gateway()?, target, 300, 64, Duration::from_millis(20))?;
        // Sixteen standard deviations to either side of 210.
        ensure!((80..=298).contains(&echoes.answered), "{} of 300 answered", echoes.answered);
        world.mend(&amber, &birch)?;
        let echoes = udp::echo(amber.gateway()?, target, 20, 64, LIMIT)?;
        ensure!(echoes.answered == 20, "{echoes:?}");
        Ok(())
    });
}

#[test]
fn a_small_mtu_is_told_to_the_sender() {
    world_test(|world| {
        let (amber, birch) = (world.cluster("amber")?, world.cluster("birch")?);
        birch.gateway()?.start_tool("echo", &["serve-udp-echo", "--port", "7"])?.wait_for_line("listening", LIMIT)?;
        amber.set_internet_mtu(1300)?;
        for target in birch.gateway()?.addresses().with_port(7) {
            // The kernel sends whole until an ICMP message says how much fits, then in fragments.
            let told = udp::echo(amber.gateway()?, target, 5, 1400, SILENCE)?;
            ensure!((1..5).contains(&told.answered), "{target}: {told:?}");
        }
        Ok(())
    });
}

#[test]
fn a_rate_limit_slows_and_is_lifted() {
    world_test(|world| {
        let amber = world.cluster("amber")?;
        let (client, server) = (amber.gateway()?, amber.worker()?.pod("server")?);
        server.serve_udp_echo(7)?;
        let target = server.addresses().with_port(7)[0];
        // 50 datagrams of 1000 bytes each way are 0.4 s at 1 Mbit/s.
        amber.worker()?.underlay().limit_rate(1)?;
        let started = Instant::now();
        let slow = udp::echo(client, target, 50, 1000, LIMIT)?;
        ensure!(slow.answered == 50 && started.elapsed() > Duration::from_millis(250), "{:?}", started.elapsed());
        amber.worker()?.underlay().unlimit_rate()?;
        ensure!(udp::echo(client, target, 50, 1000, LIMIT)?.answered == 50);
        Ok(())
    });
}

#[test]
fn behind_nat_only_answers_come_in_and_a_rebinding_changes_the_port() {
    world_test(|world| {
        let (amber, birch) = (world.cluster("amber")?, world.cluster("birch")?);
        amber.hide_behind_nat()?;
        let (inside, outside) = (amber.gateway()?, birch.gateway()?);
        outside.start_tool("echo", &["serve-udp-echo", "--port", "7"])?.wait_for_line("listening", LIMIT)?;
        for target in outside.addresses().with_port(7) {
            let from_amber = Capture::start(outside, move |packet| {
                !packet.outgoing && packet.addresses().is_some_and(|(_, to)| to == target.ip())
            })?;
            // One socket for both, so that only the translation can change the port.
            inside.run(|| -> Result<()> {
                let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = std::net::UdpSocket::bind(any)?;
                socket.set_read_timeout(Some(LIMIT))?;
                for _ in 0..2 {
                    socket.send_to(b"12345678", target)?;
                    socket.recv(&mut [0; 16])?;
                    amber.rebind_nat()?;
                }
                Ok(())
            })??;
            let udp_only = |packet: &&netns_tests::capture::Packet| packet.protocol() == Some(17);
            let seen = from_amber.stop()?;
            let seen: Vec<_> = seen.packets.iter().filter(udp_only).collect();
            let header = if target.is_ipv4() { 20 } else { 40 };
            let ports: Vec<_> = seen.iter().map(|packet| &packet.bytes[header..header + 2]).collect();
            ensure!(ports.len() == 2 && ports[0] != ports[1], "the ports were {ports:?}");
            let router = amber.ranges().transit().at(2);
            ensure!(seen.iter().all(|p| p.addresses().is_some_and(|(from, _)| router.both().contains(&from))));
        }
        for target in inside.addresses().both() {
            ensure!(icmp::ping_once(outside, target, SILENCE)?.is_none(), "nothing unasked comes in");
        }
        Ok(())
    });
}

#[test]
fn a_node_that_changes_its_address_is_found_at_the_new_one() {
    world_test(|world| {
        let amber = world.cluster("amber")?;
        let (gateway, worker) = (amber.gateway()?, amber.worker()?);
        let before = worker.addresses();
        let (client, server) = (gateway.pod("client")?, worker.pod("server")?);
        server.serve_http()?;
        let after = amber.change_address(worker)?;
        ensure!(before != after && after == worker.addresses());
        for target in server.addresses().with_port(80) {
            http::get_within(&client, target, LIMIT)?;
        }
        for target in after.both() {
            icmp::ping(gateway, target)?;
        }
        for target in before.both() {
            ensure!(icmp::ping_once(gateway, target, SILENCE)?.is_none(), "{target} is given up");
        }
        Ok(())
    });
}

#[test]
fn firewalls_and_masquerade_of_a_real_node_do_what_they_do_there() {
    world_test(|world| {
        let (amber, birch) = (world.cluster("amber")?, world.cluster("birch")?);
        let (client, server) = (amber.worker()?.pod("client")?, amber.gateway()?.pod("server")?);
        server.serve_http()?;
        amber.worker()?.add_forward_firewall()?;
        amber.worker()?.add_plugin_masquerade()?;
        amber.worker()?.check_reverse_path_strictly()?;
        for target in server.addresses().with_port(80) {
            let answer = http::get(&client, target, LIMIT)?;
            ensure!(client.addresses().both().contains(&answer.client), "inside the cluster nothing is translated");
        }
        let outside = birch.gateway()?;
        outside
            .start_tool("http", &["serve-http", "--port", "80", "--pod", "gateway", "--cluster", "birch"])?
            .wait_for_line("listening", LIMIT)?;
        for target in outside.addresses().with_port(80) {
            let answer = http::get(&client, target, LIMIT)?;
            // As on a real node, the server sees the node.
            ensure!(amber.worker()?.addresses().both().contains(&answer.client), "{answer:?}");
        }
        amber.worker()?.drop_invalid_connections()
    });
}

#[test]
fn a_download_shows_how_long_it_was_silent() {
    world_test(|world| {
        let amber = world.cluster("amber")?;
        let (client, server) = (amber.gateway()?.pod("client")?, amber.worker()?.pod("server")?);
        server.serve_stream(9)?;
        for target in server.addresses().with_port(9) {
            let download = Download::start(&client, target, LIMIT)?;
            download.wait_for_more(LIMIT)?;
            download.start_measuring();
            amber.worker()?.cut_off()?;
            let cut = Instant::now();
            while cut.elapsed() < SILENCE {
                std::thread::sleep(SILENCE.saturating_sub(cut.elapsed()));
            }
            amber.worker()?.reconnect()?;
            download.wait_for_more(LIMIT)?;
            let flow = download.stop();
            ensure!(flow.ended.is_none() && flow.longest_silence >= SILENCE / 2, "{flow:?}");
        }
        Ok(())
    });
}

#[test]
fn a_process_is_killed_frozen_and_started_again() {
    world_test(|world| {
        let node = world.cluster("amber")?.worker()?.clone();
        let pod = node.pod("server")?;
        let target = pod.addresses().with_port(80)[0];
        let first = pod.serve_http()?;
        first.freeze()?;
        ensure!(http::get(&node, target, SILENCE).is_err(), "a frozen server does not answer");
        first.thaw()?;
        http::get_within(&node, target, LIMIT)?;
        first.kill()?;
        ensure!(!first.is_running() && http::get(&node, target, SILENCE).is_err());
        let second = pod.serve_http()?;
        second.wait_for_port(&node, target, LIMIT)?;
        ensure!(http::get_many(&node, target, 20, LIMIT)?.share("amber") == 1.0);
        ensure!(pod.processes().len() == 1, "the one that ended is forgotten");
        ensure!(second.wait_for_line("never written", SILENCE).is_err());
        Ok(())
    });
}

#[test]
fn clusters_may_be_planned_larger_and_with_overlapping_pods() {
    world_test(|world| {
        let amber = world.cluster_with("amber", ClusterPlan { gateways: 2, workers: 2, ..ClusterPlan::default() })?;
        let birch = world.cluster_with("birch", ClusterPlan { pods_like: Some(1), ..ClusterPlan::default() })?;
        ensure!(amber.ranges().pods() == birch.ranges().pods());
        ensure!(amber.gateways().len() == 2 && amber.workers()[1].node_name() == "worker2");
        let (one, other) = (amber.gateways()[1].pod("one")?, amber.workers()[1].pod("other")?);
        icmp::ping(&one, other.addresses().v6.into())?;
        ensure!(amber.gateway()?.pod("one").is_err(), "a name is given once in a cluster");
        Ok(())
    });
}

#[test]
fn a_host_keeps_its_own_run_folder_and_shares_one() {
    world_test(|world| {
        let node = world.cluster("amber")?.gateway()?.clone();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo own > /run/own; echo all > /run/shared/all; cat /proc/sys/kernel/hostname"]);
        let output = node.output_of(command, LIMIT)?;
        ensure!(String::from_utf8_lossy(&output.stdout).trim() == "amber-gateway", "{output:?}");
        ensure!(std::fs::read_to_string(node.run_folder().join("own"))?.trim() == "own");
        ensure!(std::fs::read_to_string(world.shared_folder().join("all"))?.trim() == "all");
        ensure!(!std::path::Path::new("/run/own").exists(), "a host's /run is its own");
        Ok(())
    });
}

#[test]
fn tools_serve_people_who_step_in() {
    world_test(|world| {
        let amber = world.cluster("amber")?;
        let (client, server) = (amber.gateway()?.pod("client")?, amber.worker()?.pod("server")?);
        server.serve_http()?;
        server.serve_stream(9)?;
        server.serve_udp_echo(7)?;
        let address = server.addresses().v6;
        for (arguments, expected) in [
            (vec!["get".to_owned(), format!("[{address}]:80"), "--count".into(), "5".into()], "5  amber/server"),
            (vec!["ping".into(), address.to_string()], "answered in"),
            (vec!["echo".into(), format!("[{address}]:7")], "1 of 1 answered"),
            (vec!["download".into(), format!("[{address}]:9"), "--seconds".into(), "1".into()], "longest silence"),
        ] {
            let mut command = Command::new(own_program()?);
            command.args(&arguments);
            let output = client.output_of(command, LIMIT)?;
            let text = String::from_utf8_lossy(&output.stdout);
            ensure!(output.status.success() && text.contains(expected), "{arguments:?}: {text}");
        }
        let mut endless = Command::new("/bin/sleep");
        endless.arg("1000");
        ensure!(client.output_of(endless, SILENCE).is_err(), "a program that hangs is killed");
        Ok(())
    });
}

#[test]
fn a_pod_may_have_name_servers_of_its_own() {
    world_test(|world| {
        let pod = world.cluster("amber")?.worker()?.pod("client")?;
        pod.use_resolvers(&[[10, 1, 0, 53].into()], "svc.clusterset.local")?;
        let mut command = Command::new("/bin/cat");
        command.arg("/etc/resolv.conf");
        let text = String::from_utf8(pod.output_of(command, LIMIT)?.stdout)?;
        ensure!(text == "nameserver 10.1.0.53\nsearch svc.clusterset.local\n", "{text}");
        ensure!(!std::fs::read_to_string("/etc/resolv.conf")?.contains("10.1.0.53"), "only the pod's");
        Ok(())
    });
}

#[test]
fn the_evidence_tells_how_to_step_in_and_what_is_there() {
    world_test(|world| {
        let node = world.cluster("amber")?.gateway()?.clone();
        node.pod("web")?.serve_http()?;
        let text: String = world.hosts().iter().map(netns_tests::evidence::of).collect();
        for part in
            ["● amber-gateway    nsenter --target ", "listening on 80", "172.31.1.10/24", "default via", "cni0 up"]
        {
            ensure!(text.contains(part), "no {part:?} in\n{text}");
        }
        Ok(())
    });
}

#[test]
fn a_world_killed_at_once_leaves_no_process_behind() {
    // A mark in the environment of every process of that world, to find them by.
    let mark = format!("to-be-killed-{}", std::process::id());
    let mut child = Command::new(own_program().expect("tombolo-world"))
        .arg("stand")
        .env("TOMBOLO_WORLD_TEST_MARK", &mark)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a world starts");
    let output = BufReader::new(child.stdout.take().expect("its output"));
    let standing = output.lines().map_while(Result::ok).any(|line| line == "the world stands");
    assert!(standing, "the world ended early");
    assert!(processes_marked(&mark).len() > 20, "the world's processes are found by their environment");
    child.kill().expect("it is killed");
    child.wait().expect("it is gone");
    let deadline = Instant::now() + LIMIT;
    loop {
        let left = processes_marked(&mark);
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "these processes outlived their world: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_user_without_rights_gets_the_same_world() {
    const WITHOUT_RIGHTS: &str = "pods_of_one_cluster_reach_each_other_and_gateways_of_all";
    if is_inside() || !nix::unistd::geteuid().is_root() {
        // This whole run is by such a user.
        return world_test(|world| these_clusters_work(world, THREE));
    }
    // A copy, because nobody may be forbidden the folder that root builds in.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let programs = folder.path().join("deps");
    std::fs::create_dir(&programs).expect("a folder");
    std::fs::copy("/proc/self/exe", programs.join("world")).expect("a copy");
    let tool = own_program().expect("tombolo-world");
    std::fs::copy(&tool, folder.path().join("tombolo-world")).expect("a copy");
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("readable to all");
    let output = Command::new(programs.join("world"))
        .args(["--exact", WITHOUT_RIGHTS, "--test-threads=1"])
        .uid(NOBODY)
        .gid(NOBODY)
        .current_dir("/")
        .output()
        .expect("this test starts itself as nobody");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn a_failing_body_fails_its_test() {
    let outcome = std::panic::catch_unwind(|| {
        world_test(|world| {
            world.cluster("amber")?;
            anyhow::bail!("on purpose")
        });
    });
    assert!(outcome.is_err() || is_inside());
}

fn these_clusters_work(world: &World, names: [&str; 3]) -> Result<()> {
    for name in names {
        world.cluster(name)?;
    }
    let clusters = world.clusters();
    let amber = &clusters[0];
    let server = amber.gateway()?.pod("server")?;
    let client = amber.worker()?.pod("client")?;
    server.serve_http()?;
    for target in server.addresses().with_port(80) {
        let answer = http::get(&client, target, LIMIT)?;
        ensure!((answer.pod.as_str(), answer.cluster.as_str()) == ("server", "amber"), "{answer:?}");
        ensure!(client.addresses().both().contains(&answer.client), "{answer:?}");
    }
    for other in &clusters[1..] {
        for address in other.gateway()?.addresses().both() {
            icmp::ping(amber.gateway()?, address)?;
        }
    }
    Ok(())
}

/// Processes of this machine that have the mark in their environment.
fn processes_marked(mark: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").expect("/proc");
    let has_mark = |environment: Vec<u8>| environment.windows(mark.len()).any(|part| part == mark.as_bytes());
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|number| std::fs::read(format!("/proc/{number}/environ")).is_ok_and(has_mark))
        .collect()
}
