//! Tombolo over real Kubernetes API servers, one a cluster, in the namespace world.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kubernetes::{FOLDER_VARIABLE, Part, Programs};
use netns_tests::control_plane::{ApiServer, write_contexts};
use netns_tests::deployment::{self, Deployment};
use netns_tests::host::SHARED_FOLDER;
use netns_tests::manifest::{self, Service};
use netns_tests::traffic::http;
use netns_tests::{Pod, World, world_test_with};
use serde_json::Value;

/// Two API servers start on the same two cores as everything else.
const PATIENCE: Duration = Duration::from_secs(60);

/// Amber, with a client, and birch, with a server; each keeps its objects in an API server of its own.
struct TwoClusters {
    amber: Deployment,
    birch: Deployment,
    servers: [ApiServer; 2],
    client: Pod,
    server: Pod,
}

impl TwoClusters {
    /// With a controller in each.
    fn joined(world: &World) -> Result<Self> {
        Self::joined_with(world, 1)
    }

    /// With so many controllers in amber.
    fn joined_with(world: &World, replicas: usize) -> Result<Self> {
        let (amber, birch) = (world.cluster("amber")?, world.cluster("birch")?);
        let (client, server) = (amber.worker()?.pod("client")?, birch.worker()?.pod("web-1")?);
        server.serve_http()?;
        let servers = [ApiServer::start(amber.gateway()?)?, ApiServer::start(birch.gateway()?)?];
        for one in &servers {
            one.wait_until_ready()?;
            one.install_kinds()?;
        }
        let [amber, birch] = [(&amber, &servers[0], replicas), (&birch, &servers[1], 1)]
            .map(|(cluster, server, replicas)| Deployment::prepare_on(cluster, server, replicas));
        let clusters = Self { amber: amber?, birch: birch?, servers, client, server };
        Deployment::start_all(&[&clusters.amber, &clusters.birch])?;
        clusters.join()?;
        Ok(clusters)
    }

    /// Introduces them, as an operator does who has both contexts.
    fn join(&self) -> Result<()> {
        let file = Path::new(SHARED_FOLDER).join("contexts");
        let [amber, birch] = &self.servers;
        write_contexts(&file, &[("amber", amber), ("birch", birch)])?;
        let join = |arguments: &str, code| {
            self.amber.types(&format!("join {arguments} --kubeconfig {}", file.display()), code)
        };
        self.amber
            .eventually(PATIENCE, "both have something to say of themselves", || join("amber birch --dry-run", 0))?;
        ensure!(amber.kubectl(&["get", "clusterpeers", "-o", "name"])?.is_empty(), "a dry run wrote");
        let itself = join("amber amber", 4)?;
        ensure!(itself.contains("one and the same cluster"), "{itself}");
        let said = join("amber birch", 0)?;
        for (what, proof) in [
            ("amber is reached", "cluster amber, SHA256:"),
            ("prefixes do not overlap", "10.2.0.0/16"),
            ("birch trusts amber", "ClusterPeer made"),
            ("amber: packets reach birch", "Connected"),
            ("birch: knows what is exported in amber", "Synced"),
        ] {
            let is_line = |line: &str| line.starts_with(&format!("✓ {what} ")) && line.contains(proof);
            ensure!(said.lines().any(is_line), "no line '{what}' with '{proof}':\n{said}");
        }
        let again = join("amber birch", 0)?;
        ensure!(again.contains("ClusterPeer was there"), "{again}");
        Ok(())
    }

    /// Birch's pod answers at each of these addresses within `limit`, and sees the client's own.
    fn are_reached(&self, addresses: &[IpAddr], limit: Duration) -> Result<()> {
        for address in addresses {
            let answer = http::get_within(&self.client, SocketAddr::new(*address, 80), limit)?;
            ensure!(answer.cluster == "birch" && answer.pod == "web-1", "answered by {answer:?}");
            let own = self.client.addresses().both();
            ensure!(own.contains(&answer.client), "the server saw {}, not the pod's own address", answer.client);
        }
        Ok(())
    }

    /// Nothing changes, so nothing is written but Leases, for this long.
    fn are_quiet(&self) -> Result<()> {
        const QUIET: Duration = Duration::from_secs(5);
        let deadline = Instant::now() + PATIENCE;
        let mut last = (self.writes()?, Instant::now());
        while last.1.elapsed() < QUIET {
            std::thread::sleep(Duration::from_millis(100));
            let writes = self.writes()?;
            if writes.len() != last.0.len() {
                let fresh = &writes[last.0.len().min(writes.len())..];
                ensure!(Instant::now() < deadline, "though nothing changes this is written: {fresh:#?}");
                last = (writes, Instant::now());
            }
        }
        Ok(())
    }

    /// One archive has what explains both clusters, and nothing of any Secret.
    fn are_gathered_without_secrets(&self) -> Result<()> {
        let (file, contexts) =
            (Path::new(SHARED_FOLDER).join("gathered.tar.gz"), Path::new(SHARED_FOLDER).join("contexts"));
        let (file, contexts) = (file.display().to_string(), contexts.display().to_string());
        let said = self
            .amber
            .types(&format!("gather --file {file} --kubeconfig {contexts} --context amber --context birch"), 0)?;
        ensure!(said.contains(&file), "{said}");
        let unpacked = Command::new("tar").args(["-xzOf", &file]).output().context("unpacking with tar")?;
        let text = String::from_utf8_lossy(&unpacked.stdout);
        for part in ["\"clusterId\": \"birch\"", "tombolo_controller_leader", "TcpExt", "\"holderIdentity\""] {
            ensure!(text.contains(part), "{part} is not in the archive");
        }
        for server in &self.servers {
            for secret in server.list("secrets", "tombolo-system")? {
                for (entry, value) in secret["data"].as_object().into_iter().flatten() {
                    let value = value.as_str().unwrap_or_default();
                    // What everybody may know is in other objects too.
                    let is_secret = entry != "membership.json" && value.len() > 20;
                    ensure!(!is_secret || !text.contains(value), "{entry} of {} is in it", secret["metadata"]["name"]);
                }
            }
        }
        ensure!(!text.contains("PRIVATE KEY"), "a private key is in it");
        Ok(())
    }

    /// What Tombolo wrote so far, by the audit logs; without Leases.
    fn writes(&self) -> Result<Vec<String>> {
        let mut writes = Vec::new();
        for server in &self.servers {
            for entry in server.audit()? {
                let text = |pointer: &str| entry.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
                let (verb, resource, agent) = (text("/verb"), text("/objectRef/resource"), text("/userAgent"));
                let is_write = ["create", "update", "patch", "delete"].contains(&verb);
                if is_write && !["leases", "tokenreviews"].contains(&resource) && !agent.starts_with("kube") {
                    writes.push(format!("{verb} {resource} {}", text("/objectRef/name")));
                }
            }
        }
        Ok(writes)
    }

    /// Exports `shop/web` from birch.
    fn export_web(&self) -> Result<()> {
        self.amber.apply("shop.yaml", &manifest::namespace("shop"))?;
        self.birch.apply("shop.yaml", &manifest::namespace("shop"))?;
        self.birch.apply("web.yaml", &Self::web(&[&self.server]))
    }

    /// `shop/web` and its export, with these pods behind it.
    fn web(pods: &[&Pod]) -> String {
        let web = Service::http("shop", "web").manifest(pods);
        // An API server gives a Service one family unless it is asked for both.
        web.replacen("spec:\n", "spec:\n  ipFamilyPolicy: PreferDualStack\n", 1)
    }
}

#[test]
fn while_the_api_server_is_away_packets_and_names_go_on_and_status_says_since_when() {
    let programs = Programs::find_or_build().expect("the programs of Kubernetes");
    world_test_with(&[(FOLDER_VARIABLE, programs.folder().as_os_str())], |world| {
        let clusters = TwoClusters::joined(world)?;
        let [amber, _] = &clusters.servers;
        clusters.export_web()?;
        let addresses = clusters.amber.clusterset_addresses("shop", "web", PATIENCE)?;
        clusters.are_reached(&addresses, PATIENCE)?;

        for part in [Part::ApiServer, Part::Etcd] {
            amber.kill_part(part)?;
        }
        clusters.amber.types_until(PATIENCE, "status", 0, &["controller: going on with what was known"])?;
        // No limit to spare: what is known needs nobody.
        ensure!(clusters.amber.clusterset_addresses("shop", "web", Duration::from_secs(1))? == addresses);
        clusters.are_reached(&addresses, Duration::from_secs(1))?;
        // A change in birch arrives all the same, by the controllers.
        let second = clusters.birch.cluster().worker()?.pod("web-2")?;
        second.serve_http()?;
        clusters.birch.apply("web.yaml", &TwoClusters::web(&[&second]))?;
        clusters.amber.eventually(Duration::from_secs(5), "the new endpoint answers", || {
            for address in &addresses {
                let answer = http::get_within(&clusters.client, SocketAddr::new(*address, 80), Duration::from_secs(1))?;
                ensure!(answer.pod == "web-2", "answered by {answer:?}");
            }
            Ok(())
        })?;
        clusters.birch.apply("web.yaml", &TwoClusters::web(&[&clusters.server]))?;
        clusters.are_reached(&addresses, PATIENCE)?;
        // A gateway that begins anew has its controller and its disk.
        let gateway = clusters.amber.cluster().gateway()?;
        clusters.amber.process(deployment::Part::Gateway, gateway)?.kill()?;
        clusters.amber.start_part(deployment::Part::Gateway, gateway)?;
        clusters.are_reached(&addresses, PATIENCE)?;

        for part in [Part::Etcd, Part::ApiServer] {
            amber.start_part(part)?;
        }
        amber.wait_until_ready()?;
        clusters.amber.eventually(PATIENCE, "the controller is in touch again", || {
            let printed = clusters.amber.types("status", 0)?;
            ensure!(!printed.contains("going on with what was known"), "{printed}");
            Ok(())
        })
    });
}

#[test]
fn a_leader_that_slept_through_an_un_export_brings_nothing_back() {
    let programs = Programs::find_or_build().expect("the programs of Kubernetes");
    world_test_with(&[(FOLDER_VARIABLE, programs.folder().as_os_str())], |world| {
        let clusters = TwoClusters::joined_with(world, 2)?;
        let [amber, birch] = &clusters.servers;
        clusters.export_web()?;
        let addresses = clusters.amber.clusterset_addresses("shop", "web", PATIENCE)?;
        clusters.are_reached(&addresses, PATIENCE)?;

        let nodes = clusters.amber.cluster().nodes().to_vec();
        let holder = || -> Result<String> {
            let lease = amber.get("lease", "tombolo-system", "controller")?;
            Ok(lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned())
        };
        let first = holder()?;
        let leader = nodes.iter().find(|node| first.ends_with(node.node_name())).context("nobody holds the Lease")?;
        let sleeper = clusters.amber.process(deployment::Part::Controller, leader)?;
        sleeper.freeze()?;
        birch.kubectl(&["delete", "serviceexport", "-n", "shop", "web"])?;
        let is_gone = || {
            ensure!(amber.list("serviceimports", "shop")?.is_empty(), "the import is there");
            let left = amber.list("endpointslices", "shop")?;
            ensure!(left.is_empty(), "{left:#?}");
            Ok(())
        };
        clusters.amber.eventually(PATIENCE, "the other controller takes the import away", is_gone)?;
        ensure!(holder()? != first, "the sleeper still holds the Lease");

        sleeper.thaw()?;
        clusters.amber.eventually(PATIENCE, "the sleeper looks, and hears birch again", || {
            let status = clusters.amber.ask(leader, deployment::Part::Controller, "status")?;
            ensure!(status["leader"] == false && status["peers"][0]["synced"] == true, "{status:#}");
            Ok(())
        })?;
        is_gone()?;

        // They are one cluster to their peer: one identity, one epoch, one record.
        let told = || -> Result<Vec<String>> {
            nodes.iter().map(|node| clusters.amber.types_on(node, "peers export", 0)).collect()
        };
        clusters.amber.eventually(PATIENCE, "both say the same of themselves", || {
            let told = told()?;
            ensure!(told.iter().all(|one| *one == told[0]), "{told:#?}");
            Ok(())
        })?;
        // And either will do.
        clusters.amber.process(deployment::Part::Controller, leader)?.kill()?;
        clusters.export_web()?;
        let addresses = clusters.amber.clusterset_addresses("shop", "web", PATIENCE)?;
        clusters.are_reached(&addresses, PATIENCE)
    });
}

#[test]
fn a_service_exported_to_one_api_server_is_imported_into_anothers_and_its_pod_answers_by_name() {
    let programs = Programs::find_or_build().expect("the programs of Kubernetes");
    world_test_with(&[(FOLDER_VARIABLE, programs.folder().as_os_str())], |world| {
        let clusters = TwoClusters::joined(world)?;
        let [amber, birch] = &clusters.servers;
        clusters.export_web()?;
        let addresses = clusters.amber.clusterset_addresses("shop", "web", PATIENCE)?;
        clusters.are_reached(&addresses, PATIENCE)?;

        let import = amber.get("serviceimport", "shop", "web")?;
        ensure!(import["spec"]["type"] == "ClusterSetIP", "{import:#}");
        let ips: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let said = import["spec"]["ips"].as_array().context("ips")?;
        ensure!(said.iter().all(|ip| ips.iter().any(|known| ip == known)), "{said:?}, not {ips:?}");
        let slices = amber.list("endpointslices", "shop")?;
        let of_birch = slices.iter().filter(|slice| {
            let labels = &slice["metadata"]["labels"];
            labels["multicluster.kubernetes.io/source-cluster"] == "birch"
                && labels["multicluster.kubernetes.io/service-name"] == "web"
        });
        ensure!(of_birch.count() == 2, "one slice a family: {slices:#?}");

        let export = birch.get("serviceexport", "shop", "web")?;
        let conditions = export["status"]["conditions"].as_array().context("conditions")?;
        let is_true = |kind: &str| conditions.iter().any(|one| one["type"] == kind && one["status"] == "True");
        ensure!(is_true("Valid") && is_true("Ready"), "{conditions:#?}");

        clusters.are_quiet()?;
        clusters.are_gathered_without_secrets()?;
        birch.kubectl(&["delete", "serviceexport", "-n", "shop", "web"])?;
        clusters.amber.eventually(PATIENCE, "the import is gone", || {
            ensure!(amber.list("serviceimports", "shop")?.is_empty(), "it is still there");
            let left = amber.list("endpointslices", "shop")?;
            ensure!(left.is_empty(), "{left:#?}");
            Ok(())
        })
    });
}
