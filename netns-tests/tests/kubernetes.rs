//! Tombolo over real Kubernetes API servers, one a cluster, in the namespace world.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kubernetes::{FOLDER_VARIABLE, Part, Programs};
use netns_tests::control_plane::ApiServer;
use netns_tests::deployment::{self, Deployment};
use netns_tests::manifest::{self, Service};
use netns_tests::traffic::http;
use netns_tests::{Pod, World, world_test_with};

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
    fn joined(world: &World) -> Result<Self> {
        let (amber, birch) = (world.cluster("amber")?, world.cluster("birch")?);
        let (client, server) = (amber.worker()?.pod("client")?, birch.worker()?.pod("web-1")?);
        server.serve_http()?;
        let servers = [ApiServer::start(amber.gateway()?)?, ApiServer::start(birch.gateway()?)?];
        for one in &servers {
            one.wait_until_ready()?;
            one.install_kinds()?;
        }
        let [amber, birch] = [(&amber, &servers[0]), (&birch, &servers[1])]
            .map(|(cluster, server)| Deployment::prepare_on(cluster, server));
        let clusters = Self { amber: amber?, birch: birch?, servers, client, server };
        Deployment::start_all(&[&clusters.amber, &clusters.birch])?;
        Deployment::introduce(&[&clusters.amber, &clusters.birch])?;
        clusters.amber.wait_until_connected("birch", PATIENCE)?;
        clusters.birch.wait_until_connected("amber", PATIENCE)?;
        Ok(clusters)
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

    /// Exports `shop/web` from birch.
    fn export_web(&self) -> Result<()> {
        self.amber.apply("shop.yaml", &manifest::namespace("shop"))?;
        self.birch.apply("shop.yaml", &manifest::namespace("shop"))?;
        let web = Service::http("shop", "web").manifest(&[&self.server]);
        // An API server gives a Service one family unless it is asked for both.
        let web = web.replacen("spec:\n", "spec:\n  ipFamilyPolicy: PreferDualStack\n", 1);
        self.birch.apply("web.yaml", &web)
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

        birch.kubectl(&["delete", "serviceexport", "-n", "shop", "web"])?;
        clusters.amber.eventually(PATIENCE, "the import is gone", || {
            ensure!(amber.list("serviceimports", "shop")?.is_empty(), "it is still there");
            let left = amber.list("endpointslices", "shop")?;
            ensure!(left.is_empty(), "{left:#?}");
            Ok(())
        })
    });
}
