//! Hostile neighbours: what is wrong is refused by name and counted, and everything else goes on.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use api::names::ports;
use api::report::{ControllerReport, GatewayReport};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use hickory_proto::rr::RecordType;
use netns_tests::deployment::{Deployment, Part};
use netns_tests::manifest::{self, LocalCluster, Service};
use netns_tests::scenario::three_clusters::PATIENCE;
use netns_tests::traffic::{dns, http};
use netns_tests::{Host, Pod, World, world_test};
use socket2::{Domain, Protocol, Socket, Type};

/// Amber, whom the tests wrong, and birch, who does it: joined, with `shop/web` of birch imported in amber.
struct Neighbours {
    amber: Deployment,
    birch: Deployment,
    client: Pod,
    server: Pod,
}

impl Neighbours {
    fn joined(world: &World) -> Result<Self> {
        let (amber, birch) = (world.cluster("amber")?, world.cluster("birch")?);
        let (client, server) = (amber.worker()?.pod("client")?, birch.worker()?.pod("web")?);
        server.serve_http()?;
        let neighbours = Self { amber: Deployment::start(&amber)?, birch: Deployment::start(&birch)?, client, server };
        Deployment::introduce(&[&neighbours.amber, &neighbours.birch])?;
        neighbours.amber.wait_until_connected("birch", PATIENCE)?;
        neighbours.birch.wait_until_connected("amber", PATIENCE)?;
        neighbours.amber.apply("shop.yaml", &manifest::namespace("shop"))?;
        neighbours.birch.apply("web.yaml", &Service::http("shop", "web").manifest(&[&neighbours.server]))?;
        neighbours.goes_on("web")?;
        Ok(neighbours)
    }

    /// `shop/<service>` is found by name and answers over TCP: names, sync, tunnels and filters do their work.
    fn goes_on(&self, service: &str) -> Result<()> {
        for address in self.amber.clusterset_addresses("shop", service, PATIENCE)? {
            http::get_within(&self.client, SocketAddr::new(address, 80), PATIENCE)?;
        }
        Ok(())
    }

    /// What birch exports now arrives: nothing of its conversation with amber was lost.
    fn takes_changes(&self, service: &str) -> Result<()> {
        let manifest = Service::http("shop", service).manifest(&[&self.server]);
        self.birch.apply(&format!("{service}.yaml"), &manifest)?;
        self.goes_on(service)
    }

    fn count(&self, part: Part, metric: &str, labels: &[&str]) -> Result<f64> {
        self.amber.metric(self.amber.cluster().gateway()?, part, metric, labels)
    }

    /// Waits until a metric of amber's gateway node has grown by `more`.
    fn wait_for_count(&self, part: Part, metric: &str, labels: &[&str], more: f64, before: f64) -> Result<()> {
        self.amber.eventually(PATIENCE, &format!("{metric}{labels:?} grows by {more}"), || {
            let now = self.count(part, metric, labels)?;
            ensure!(now - before >= more, "it was {before} and is {now}");
            Ok(())
        })
    }

    fn status(&self) -> Result<ControllerReport> {
        let answer = self.amber.ask(self.amber.cluster().gateway()?, Part::Controller, "status")?;
        Ok(serde_json::from_value(answer)?)
    }

    /// Waits until `tombolo <command>` in amber prints all of `texts` in one line, and checks how it ends.
    fn wait_for_line(&self, command: &[&str], texts: &[&str], code: i32) -> Result<()> {
        self.amber.eventually(PATIENCE, &format!("{command:?} says {texts:?}"), || {
            let output = self.amber.tombolo(self.amber.cluster().gateway()?, command)?;
            let printed = String::from_utf8(output.stdout)?;
            let found = printed.lines().any(|line| texts.iter().all(|text| line.contains(text)));
            ensure!(found && output.status.code() == Some(code), "{:?}:\n{printed}", output.status);
            Ok(())
        })
    }
}

/// Bytes that look random, the same in every run.
fn noise(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        // Knuth's linear congruential generator: its upper bits are good enough to shout with.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
}

/// Sends one IPv4 UDP packet with a source that need not be the sender's (RFC 791, RFC 768).
fn send_as(host: &Host, source: Ipv4Addr, target: SocketAddrV4) -> Result<()> {
    const HEADER: usize = 20;
    const DATAGRAM: usize = 8;
    let mut packet = [0; HEADER + DATAGRAM];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&((HEADER + DATAGRAM) as u16).to_be_bytes());
    packet[8] = 64;
    packet[9] = 17;
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&target.ip().octets());
    // The kernel writes the header's checksum; UDP over IPv4 may go without its own.
    packet[20..22].copy_from_slice(&40_000u16.to_be_bytes());
    packet[22..24].copy_from_slice(&target.port().to_be_bytes());
    packet[24..26].copy_from_slice(&(DATAGRAM as u16).to_be_bytes());
    host.run(|| -> Result<()> {
        // IPPROTO_RAW (255): the header is the sender's own.
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
        socket.send_to(&packet, &SocketAddr::from(SocketAddrV4::new(*target.ip(), 0)).into())?;
        Ok(())
    })?
}

#[test]
fn a_source_that_is_not_the_peers_is_refused_as_wrong_source_and_counted() {
    world_test(|world| {
        let neighbours = Neighbours::joined(world)?;
        let foreign = Ipv4Addr::new(10, 99, 0, 2);
        let IpAddr::V4(target) = neighbours.client.addresses().both()[0] else { unreachable!("the first is IPv4") };
        let target = SocketAddrV4::new(target, 9);

        // As long as birch is honest, its own gateway host does not let it out.
        let birch = &neighbours.birch;
        let gateway = birch.cluster().gateway()?;
        birch.eventually(PATIENCE, "birch refuses a source that is not its own", || {
            send_as(&neighbours.server, foreign, target)?;
            let refused = birch.metric(gateway, Part::Node, "tombolo_refusals_total", &["reason=\"ForeignSource\""])?;
            ensure!(refused > 0.0, "nothing was refused yet");
            Ok(())
        })?;
        ensure!(neighbours.count(Part::Gateway, "tombolo_refusals_total", &["reason=\"WrongSource\""])? == 0.0);

        // Birch says of a range that it is its own, which amber's operator never allowed.
        let mut lie = LocalCluster::of(birch.cluster());
        lie.pod_prefixes.push("10.99.0.0/16".into());
        birch.apply("local.yaml", &lie.to_string())?;
        neighbours.wait_for_line(&["status"], &["✗ birch", "10.99.0.0/16", "not within the allowed prefixes"], 1)?;
        neighbours.amber.eventually(PATIENCE, "amber's gateway counts it", || {
            send_as(&neighbours.server, foreign, target)?;
            let labels = ["peer=\"birch\"", "reason=\"WrongSource\""];
            ensure!(neighbours.count(Part::Gateway, "tombolo_refusals_total", &labels)? > 0.0, "not counted yet");
            Ok(())
        })?;
        neighbours.wait_for_line(&["refusals"], &["WrongSource", "birch", "UDP", "10.99.0.2:40000"], 0)?;
        neighbours.goes_on("web")
    });
}

#[test]
fn an_unknown_wireguard_peer_gets_silence_and_is_counted() {
    world_test(|world| {
        let neighbours = Neighbours::joined(world)?;
        let node = neighbours.amber.cluster().gateway()?;
        let report: GatewayReport = serde_json::from_value(neighbours.amber.ask(node, Part::Gateway, "status")?)?;
        // It knows the gateway's public key, as anybody may who has seen a member record.
        let key: api::keys::TunnelKey = report.lanes.first().context("a lane")?.public_key.parse()?;
        let reason = ["reason=\"UnknownPeer\"", "peer=\"\""];
        let before = neighbours.count(Part::Gateway, "tombolo_refusals_total", &reason)?;
        let socket = world.internet().run(|| UdpSocket::bind("0.0.0.0:0"))??;
        socket.connect(node.addresses().with_port(ports::TUNNEL)[0])?;
        let mut tunnel = Tunn::new(StaticSecret::from([99; 32]), PublicKey::from(key.0), None, None, 1, None);
        let mut room = [0; 148];
        for _ in 0..10 {
            let TunnResult::WriteToNetwork(initiation) = tunnel.format_handshake_initiation(&mut room, true) else {
                anyhow::bail!("no handshake could be made");
            };
            socket.send(initiation)?;
        }
        neighbours.wait_for_count(Part::Gateway, "tombolo_refusals_total", &reason, 10.0, before)?;
        neighbours.wait_for_line(&["refusals"], &["UnknownPeer", "172.30."], 0)?;
        neighbours.goes_on("web")?;
        socket.set_nonblocking(true)?;
        ensure!(socket.recv(&mut room).is_err(), "a stranger got an answer");
        Ok(())
    });
}

#[test]
fn two_hundred_random_datagrams_leave_the_dns_server_answering() {
    world_test(|world| {
        let neighbours = Neighbours::joined(world)?;
        let [server, _] = neighbours.amber.dns()?;
        let seen = || -> Result<f64> {
            Ok(neighbours.count(Part::Dns, "tombolo_dns_responses_total", &["transport=\"udp\""])?
                + neighbours.count(Part::Dns, "tombolo_dns_dropped_total", &["transport=\"udp\""])?)
        };
        let before = seen()?;
        let socket = neighbours.client.run(|| UdpSocket::bind("0.0.0.0:0"))??;
        socket.connect(server)?;
        let limit = Duration::from_secs(5);
        for number in 0..200u64 {
            let length = (number as usize * 13) % 500;
            socket.send(&noise(number + 1).take(length).collect::<Vec<u8>>())?;
            // A question now and then: answered in the middle of it, and no datagram is lost to a full queue.
            if number % 20 == 19 {
                let name = "web.shop.svc.clusterset.local.";
                let transport = dns::Transport::Udp;
                let answer = dns::query(&neighbours.client, server, name, RecordType::A, transport, limit)?;
                ensure!(!answer.answers.is_empty(), "after {number} datagrams: {}", answer.metadata.response_code);
            }
        }
        neighbours.amber.eventually(PATIENCE, "every datagram is counted", || {
            let counted = seen()? - before;
            ensure!(counted >= 210.0, "{counted} of 210 are counted");
            Ok(())
        })?;
        neighbours.goes_on("web")
    });
}

#[test]
fn a_huge_and_a_broken_manifest_are_refused_by_name_and_the_last_good_version_stays_in_force() {
    world_test(|world| {
        let neighbours = Neighbours::joined(world)?;
        let amber = &neighbours.amber;
        neighbours.wait_for_line(&["status"], &["4/4 parts ready"], 0)?;

        // The client is the endpoint of amber's own service, so that its good version shows in birch.
        neighbours.client.serve_http()?;
        let own = Service::http("shop", "own").manifest(&[&neighbours.client]);
        amber.apply("own.yaml", &own)?;
        neighbours.birch.apply("shop.yaml", &manifest::namespace("shop"))?;
        let addresses = neighbours.birch.clusterset_addresses("shop", "own", PATIENCE)?;

        const HUNDRED_MEGABYTES: u64 = 100 * 1024 * 1024;
        let beside = amber.manifests().with_file_name("huge");
        // A hole in the file costs no memory and is read as zeros.
        File::create(&beside)?.set_len(HUNDRED_MEGABYTES)?;
        fs::rename(&beside, amber.manifests().join("huge.yaml"))?;
        let broken = own.replacen("  ports:\n", "  ports: none\n  # and what follows is no list of that name\n", 1);
        amber.apply("own.yaml", &broken)?;

        neighbours.wait_for_line(&["status"], &["✗ huge.yaml", &HUNDRED_MEGABYTES.to_string(), "split it"], 1)?;
        neighbours.wait_for_line(&["status"], &["✗ own.yaml:", "last good version stays in force"], 1)?;
        let documents = neighbours.status()?.broken_documents;
        let lines: Vec<usize> =
            documents.iter().filter(|document| document.file == "own.yaml").map(|document| document.line).collect();
        // The Service is the first document; its ports are its seventh line.
        ensure!(lines.iter().any(|line| (7..=9).contains(line)), "named lines {lines:?} of\n{broken}");

        // The last good version: the name still answers in birch, at its old addresses.
        ensure!(neighbours.birch.clusterset_addresses("shop", "own", PATIENCE)? == addresses);
        for address in &addresses {
            http::get_within(&neighbours.server, SocketAddr::new(*address, 80), PATIENCE)?;
        }
        neighbours.takes_changes("more")?;

        amber.apply("own.yaml", &own)?;
        amber.remove("huge.yaml")?;
        neighbours.wait_for_line(&["status"], &["4/4 parts ready"], 0)
    });
}

#[test]
fn a_namespace_that_the_importing_cluster_does_not_accept_is_refused_by_name() {
    world_test(|world| {
        let neighbours = Neighbours::joined(world)?;
        let (amber, birch) = (&neighbours.amber, &neighbours.birch);
        let labels = ["peer=\"birch\"", "reason=\"NamespaceNotAccepted\""];
        let refused = |least: f64| {
            amber.eventually(PATIENCE, &format!("at least {least} items are refused"), || {
                let count = neighbours.count(Part::Controller, "tombolo_sync_refused_items", &labels)?;
                ensure!(count >= least, "{count} are");
                Ok(())
            })
        };

        // By default a peer may not touch the system's namespaces, though they exist in amber.
        amber.apply("kube-system.yaml", &manifest::namespace("kube-system"))?;
        amber.apply("team.yaml", &manifest::namespace("team"))?;
        birch.apply("system.yaml", &Service::http("kube-system", "dns").manifest(&[&neighbours.server]))?;
        birch.apply("team-web.yaml", &Service::http("team", "web").manifest(&[&neighbours.server]))?;
        amber.clusterset_addresses("team", "web", PATIENCE)?;
        refused(1.0)?;
        neighbours.wait_for_line(&["refusals"], &["NamespaceNotAccepted", "birch", "kube-system/dns"], 0)?;
        ensure!(resolves(&neighbours, "dns.kube-system")? == "Non-Existent Domain");

        // Then the operator names what is accepted, and nothing else is.
        let manifest = birch.peer_manifest(PATIENCE)?;
        amber.apply("peer-birch.yaml", &format!("{}\n  accept:\n    namespaces: [shop]\n", manifest.trim_end()))?;
        refused(3.0)?;
        neighbours.wait_for_line(&["refusals"], &["NamespaceNotAccepted", "birch"], 0)?;
        amber.eventually(PATIENCE, "team/web is gone", || {
            let code = resolves(&neighbours, "web.team")?;
            ensure!(code == "Non-Existent Domain", "{code}");
            Ok(())
        })?;
        neighbours.goes_on("web")?;
        neighbours.takes_changes("more")
    });
}

/// The response code of amber's DNS server.
fn resolves(neighbours: &Neighbours, name: &str) -> Result<String> {
    let [server, _] = neighbours.amber.dns()?;
    let name = format!("{name}.svc.clusterset.local.");
    let limit = Duration::from_secs(2);
    let answer = dns::query(&neighbours.client, server, &name, RecordType::A, dns::Transport::Udp, limit)?;
    Ok(answer.metadata.response_code.to_string())
}

#[test]
fn an_endpoint_outside_the_peers_prefixes_is_refused_and_the_others_serve() {
    world_test(|world| {
        let neighbours = Neighbours::joined(world)?;
        // Birch offers a pod of amber's as its own: who asks for it would be sent to where birch wants.
        let stolen = neighbours.client.addresses().both()[0].to_string();
        let manifest = Service::http("shop", "web").manifest(&[&neighbours.server]);
        let own = format!("\"{}\"", neighbours.server.addresses().both()[0]);
        let line = manifest.lines().find(|line| line.contains(&own)).context("the endpoint's line")?.to_owned();
        let more = format!(
            "{line}\n{}",
            line.replace(&own, &format!("\"{stolen}\"")).replace("hostname: web", "hostname: stolen")
        );
        neighbours.birch.apply("web.yaml", &manifest.replacen(&line, &more, 1))?;

        let labels = ["peer=\"birch\"", "reason=\"EndpointOutsidePrefixes\""];
        neighbours.wait_for_count(Part::Controller, "tombolo_sync_refused_items", &labels, 1.0, 0.0)?;
        neighbours.wait_for_line(&["refusals"], &["EndpointOutsidePrefixes", "birch", "shop/web"], 0)?;
        let worker = neighbours.amber.cluster().worker()?;
        let services = neighbours.amber.ask(worker, Part::Node, "services")?.to_string();
        ensure!(!services.contains("\"total\":2"), "the stolen endpoint serves: {services}");
        neighbours.goes_on("web")
    });
}

#[test]
fn a_peer_with_a_forged_or_cut_record_is_refused_with_file_line_and_reason() {
    world_test(|world| {
        let neighbours = Neighbours::joined(world)?;
        let manifest = neighbours.birch.peer_manifest(PATIENCE)?.replace("name: \"birch\"", "name: \"willow\"");
        let record: Vec<&str> = manifest.lines().skip_while(|line| !line.contains("record:")).skip(1).collect();
        let (first, last) = (record.first().context("a record")?, record.last().context("a record")?);

        // Cut: its end is missing. Forged: one character of what was signed is another.
        let cut = manifest.replace(last, "");
        let middle = first.len() / 2;
        let other = if first.as_bytes()[middle] == b'A' { "B" } else { "A" };
        let forged_line = format!("{}{other}{}", &first[..middle], &first[middle + 1..]);
        let forged = manifest.replace(first, &forged_line);
        neighbours.amber.apply("cut.yaml", &cut)?;
        neighbours.amber.apply("forged.yaml", &forged.replace("willow", "alder"))?;
        // Sound, but of another cluster than its name says.
        neighbours.amber.apply("named.yaml", &manifest)?;
        let line_of = |text: &str| text.lines().position(|line| line.contains("record:")).map_or(0, |place| place + 1);
        for (file, text) in [("cut.yaml", &cut), ("forged.yaml", &forged), ("named.yaml", &manifest)] {
            neighbours.wait_for_line(&["status"], &["✗", &format!("{file}:{}:", line_of(text)), "spec.record"], 1)?;
        }
        let report = neighbours.status()?;
        ensure!(report.peers.iter().all(|peer| peer.peer == "birch"), "{:?}", report.peers);
        neighbours.takes_changes("more")
    });
}

#[test]
fn garbage_on_the_controllers_port_and_on_the_health_port_changes_nothing() {
    world_test(|world| {
        let neighbours = Neighbours::joined(world)?;
        let gateway = neighbours.amber.cluster().gateway()?;
        let worker = neighbours.amber.cluster().worker()?;
        let garbage: [&[u8]; 4] = [
            b"GET / HTTP/1.1\r\nHost: tombolo\r\n\r\n",
            // A TLS handshake record (RFC 8446, 5.1) whose content is none.
            b"\x16\x03\x01\x00\x10nonsense nonsense",
            b"\x16\x03\x01\xff\xff",
            &[0; 64],
        ];
        let all = |part: Part| neighbours.count(part, "tombolo_refusals_total", &[]);
        let (before_controller, before_gateway) = (all(Part::Controller)?, all(Part::Gateway)?);
        for address in gateway.addresses().with_port(ports::CONTROLLER) {
            for number in 0..20 {
                let random: Vec<u8> = noise(number).take(200).collect();
                let bytes = garbage.get(number as usize % 5).copied().unwrap_or(&random);
                worker.run(|| -> std::io::Result<()> {
                    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
                    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
                    // It may be closed in our face at any byte, and that is right.
                    let _ = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
                    let _ = stream.take(64 * 1024).read_to_end(&mut Vec::new());
                    Ok(())
                })??;
            }
        }
        // Those that ended before they said a whole word are nobody's business.
        neighbours.wait_for_count(Part::Controller, "tombolo_refusals_total", &[], 20.0, before_controller)?;

        let socket = worker.run(|| UdpSocket::bind("0.0.0.0:0"))??;
        for number in 0..100u64 {
            let bytes: Vec<u8> = noise(number + 1).take(1 + (number as usize * 7) % 300).collect();
            socket.send_to(&bytes, gateway.addresses().with_port(ports::HEALTH)[0])?;
        }
        neighbours.wait_for_count(Part::Gateway, "tombolo_refusals_total", &[], 100.0, before_gateway)?;
        neighbours.wait_for_line(&["refusals"], &["MalformedHealthRequest"], 0)?;
        neighbours.wait_for_line(&["status"], &["4/4 parts ready"], 0)?;
        neighbours.takes_changes("more")
    });
}

/// Answers of UDP look like anything else: only who tracks the flow knows that it was asked for.
#[test]
fn a_datagram_from_an_endpoints_port_reaches_those_who_asked_it_and_nobody_else() {
    const TALK: u16 = 9001;
    const PRIVATE: u16 = 5001;
    world_test(|world| {
        let neighbours = Neighbours::joined(world)?;
        let worker = neighbours.amber.cluster().worker()?;
        let bystander = worker.pod("bystander")?;
        let talk = Service { ports: Vec::new(), ..Service::http("shop", "talk") }.with_port("talk", "UDP", TALK, TALK);
        neighbours.birch.apply("talk.yaml", &talk.manifest(&[&neighbours.server]))?;
        let own = neighbours.server.addresses().both();
        let bind = |host: &Host, address: IpAddr, port: u16| -> Result<UdpSocket> {
            let socket = host.run(|| UdpSocket::bind((address, port)))??;
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            Ok(socket)
        };
        let families = own.iter().zip(neighbours.client.addresses().both()).zip(bystander.addresses().both());
        for ((endpoint, client), bystander_address) in families {
            let hostile = bind(&neighbours.server, *endpoint, TALK)?;
            let asker = bind(&neighbours.client, client, 0)?;
            let mut buffer = [0; 64];
            neighbours.amber.eventually(PATIENCE, &format!("{endpoint} is asked and answers"), || {
                asker.send_to(b"question", (*endpoint, TALK))?;
                let (_, from) = hostile.recv_from(&mut buffer)?;
                hostile.send_to(b"answer", from)?;
                asker.recv_from(&mut buffer)?;
                Ok(())
            })?;

            // The same pod by a port that asked nobody, and a pod that asked nobody.
            let silent = bind(&neighbours.client, client, PRIVATE)?;
            let never = bind(&bystander, bystander_address, PRIVATE)?;
            let refused = || neighbours.amber.metric(worker, Part::Node, "tombolo_refusals_total", &["Unexported"]);
            let before = refused()?;
            for target in [client, bystander_address] {
                hostile.send_to(b"gotcha", (target, PRIVATE))?;
            }
            neighbours.amber.eventually(PATIENCE, "both are refused by name", || {
                let more = refused()? - before;
                ensure!(more >= 2.0, "{more} were refused");
                Ok(())
            })?;
            for socket in [&silent, &never] {
                let heard = socket.recv_from(&mut buffer);
                ensure!(heard.is_err(), "a datagram that nobody asked for arrived: {heard:?}");
            }
            asker.send_to(b"question", (*endpoint, TALK))?;
            let (_, from) = hostile.recv_from(&mut buffer)?;
            hostile.send_to(b"answer", from)?;
            asker.recv_from(&mut buffer).context("who asked is not answered any more")?;
        }
        neighbours.goes_on("web")
    });
}
