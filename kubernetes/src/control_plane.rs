//! [`ControlPlane`]: the files of one cluster's control plane, and the command lines of its parts.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use crate::authority::{Authority, Signed};
use crate::programs::{Program, Programs};

/// Service addresses of every test cluster that does not say others, one a family.
pub const SERVICE_RANGES: &str = "10.96.0.0/16,fd96::/112";

/// Where the parts of one cluster listen.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Of the host they run on.
    pub host: IpAddr,
    pub api_server: u16,
    pub etcd: u16,
    /// etcd wants one for other members, though there are none.
    pub etcd_peer: u16,
    pub controller_manager: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Etcd,
    ApiServer,
    ControllerManager,
}

impl Part {
    /// In the order in which they must start.
    pub const ALL: [Self; 3] = [Self::Etcd, Self::ApiServer, Self::ControllerManager];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "api-server",
            Self::ControllerManager => "controller-manager",
        }
    }
}

/// One cluster's control plane, not running.
pub struct ControlPlane {
    programs: Programs,
    folder: PathBuf,
    addresses: Addresses,
    authority: Authority,
    service_ranges: String,
}

impl ControlPlane {
    /// Writes certificates, keys, policies and kubeconfigs into `folder`, which must be empty or new.
    pub fn new(programs: &Programs, folder: &Path, addresses: Addresses, service_ranges: &str) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let plane = Self {
            programs: programs.clone(),
            folder: folder.to_owned(),
            addresses,
            authority: Authority::new()?,
            service_ranges: service_ranges.to_owned(),
        };
        plane.write("ca.crt", plane.authority.certificate())?;
        let names = ["kubernetes.default.svc", "localhost", "127.0.0.1", "::1", "10.96.0.1", "fd96::1"];
        let names = names.map(str::to_owned).into_iter().chain([addresses.host.to_string()]).collect();
        let server = plane.authority.sign("kube-apiserver", None, names)?;
        plane.write("server.crt", &server.certificate)?;
        plane.write("server.key", &server.key)?;
        // Tokens of service accounts are signed with a key of their own.
        let accounts = rcgen::KeyPair::generate()?;
        plane.write("accounts.key", &accounts.serialize_pem())?;
        plane.write("accounts.pub", &accounts.public_key_pem())?;
        plane.write("audit.yaml", AUDIT_POLICY)?;
        plane.kubeconfig("admin", Some("system:masters"))?;
        plane.kubeconfig("system:kube-controller-manager", None)?;
        Ok(plane)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// `https://…` of the API server.
    pub fn url(&self) -> String {
        match self.addresses.host {
            IpAddr::V4(host) => format!("https://{host}:{}", self.addresses.api_server),
            IpAddr::V6(host) => format!("https://[{host}]:{}", self.addresses.api_server),
        }
    }

    /// The authority that signed the API server's certificate, PEM.
    pub fn authority_certificate(&self) -> &str {
        self.authority.certificate()
    }

    /// The kubeconfig of the user who may do everything.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.folder.join("admin.kubeconfig")
    }

    /// Every request the API server answered, a JSON line each.
    pub fn audit_log(&self) -> PathBuf {
        self.folder.join("audit.log")
    }

    /// Makes a user and the kubeconfig to be it; returns that file.
    pub fn kubeconfig(&self, user: &str, group: Option<&str>) -> Result<PathBuf> {
        let Signed { certificate, key } = self.authority.sign(user, group, Vec::new())?;
        let name = user.rsplit(':').next().unwrap_or(user);
        let (certificate_file, key_file) = (format!("{name}.crt"), format!("{name}.key"));
        self.write(&certificate_file, &certificate)?;
        self.write(&key_file, &key)?;
        let user = json!({
            "client-certificate": self.folder.join(certificate_file), "client-key": self.folder.join(key_file)
        });
        self.kubeconfig_with(name, &user)
    }

    /// The kubeconfig of whoever holds a service account's token.
    pub fn token_kubeconfig(&self, name: &str, token: &str) -> Result<PathBuf> {
        self.kubeconfig_with(name, &json!({ "token": token }))
    }

    fn kubeconfig_with(&self, name: &str, user: &serde_json::Value) -> Result<PathBuf> {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": self.url(), "certificate-authority": self.folder.join("ca.crt"),
            }}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
        });
        self.write(&format!("{name}.kubeconfig"), &config.to_string())
    }

    /// How to run a part in the foreground.
    pub fn command(&self, part: Part) -> Command {
        let Addresses { host, api_server, etcd, etcd_peer, controller_manager } = self.addresses;
        let file = |name: &str| self.folder.join(name).display().to_string();
        let (program, arguments) = match part {
            Part::Etcd => {
                let client = format!("http://127.0.0.1:{etcd}");
                let peer = format!("http://127.0.0.1:{etcd_peer}");
                let arguments = vec![
                    format!("--data-dir={}", file("etcd")),
                    format!("--listen-client-urls={client}"),
                    format!("--advertise-client-urls={client}"),
                    format!("--listen-peer-urls={peer}"),
                    format!("--initial-advertise-peer-urls={peer}"),
                    format!("--initial-cluster=default={peer}"),
                    // A test's machine does not lose power; its processes are killed, and the kernel keeps what they wrote.
                    "--unsafe-no-fsync".to_owned(),
                    "--log-level=warn".to_owned(),
                ];
                (Program::Etcd, arguments)
            }
            Part::ApiServer => {
                let arguments = vec![
                    format!("--etcd-servers=http://127.0.0.1:{etcd}"),
                    format!("--bind-address={host}"),
                    format!("--advertise-address={host}"),
                    format!("--secure-port={api_server}"),
                    format!("--tls-cert-file={}", file("server.crt")),
                    format!("--tls-private-key-file={}", file("server.key")),
                    format!("--client-ca-file={}", file("ca.crt")),
                    "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                    format!("--service-account-key-file={}", file("accounts.pub")),
                    format!("--service-account-signing-key-file={}", file("accounts.key")),
                    "--authorization-mode=RBAC".to_owned(),
                    format!("--service-cluster-ip-range={}", self.service_ranges),
                    // Nobody asks for `kubernetes.default` here, and a host of 127.0.0.1 may not be an endpoint.
                    "--endpoint-reconciler-type=none".to_owned(),
                    "--allow-privileged=true".to_owned(),
                    format!("--audit-policy-file={}", file("audit.yaml")),
                    format!("--audit-log-path={}", file("audit.log")),
                    format!("--cert-dir={}", file("certs")),
                ];
                (Program::ApiServer, arguments)
            }
            Part::ControllerManager => {
                let kubeconfig = file("kube-controller-manager.kubeconfig");
                let arguments = vec![
                    format!("--kubeconfig={kubeconfig}"),
                    format!("--authentication-kubeconfig={kubeconfig}"),
                    format!("--authorization-kubeconfig={kubeconfig}"),
                    "--bind-address=127.0.0.1".to_owned(),
                    format!("--secure-port={controller_manager}"),
                    format!("--cert-dir={}", file("certs")),
                    format!("--service-account-private-key-file={}", file("accounts.key")),
                    format!("--root-ca-file={}", file("ca.crt")),
                    "--use-service-account-credentials=true".to_owned(),
                    // One of each: there is nobody to wait for.
                    "--leader-elect=false".to_owned(),
                ];
                (Program::ControllerManager, arguments)
            }
        };
        let mut command = Command::new(self.programs.path(program));
        command.args(arguments);
        command
    }

    /// `kubectl` with everything allowed.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(self.programs.path(Program::Kubectl));
        command.arg("--kubeconfig").arg(self.admin_kubeconfig());
        // Its cache would be in the home folder of whoever runs the tests.
        command.arg("--cache-dir").arg(self.folder.join("kubectl"));
        command
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

/// Who did what to what: no bodies, and a line when it is done.
const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
";
