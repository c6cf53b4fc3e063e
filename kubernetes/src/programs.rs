//! [`Programs`]: where the programs of Kubernetes are, built once where they are not.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};

/// As `kubernetes/programs/go.mod` has it. The API server says this of itself only when it is linked in.
pub const VERSION: &str = "v1.36.3";
/// Where the field's tools look for these programs (kubebuilder's envtest).
pub const ASSETS_VARIABLE: &str = "KUBEBUILDER_ASSETS";
/// What tells a process in a sandbox where they are: there is no module proxy there.
pub const FOLDER_VARIABLE: &str = "TOMBOLO_KUBERNETES_PROGRAMS";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Etcd,
    ApiServer,
    ControllerManager,
    Kubectl,
}

impl Program {
    pub const ALL: [Self; 4] = [Self::Etcd, Self::ApiServer, Self::ControllerManager, Self::Kubectl];

    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Kubectl => "kubectl",
        }
    }

    const fn package(self) -> &'static str {
        match self {
            Self::Etcd => "go.etcd.io/etcd/server/v3",
            Self::ApiServer => "k8s.io/kubernetes/cmd/kube-apiserver",
            Self::ControllerManager => "k8s.io/kubernetes/cmd/kube-controller-manager",
            Self::Kubectl => "k8s.io/kubernetes/cmd/kubectl",
        }
    }
}

/// Every program, by where it is.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Looked into first.
    assets: Option<PathBuf>,
    built: PathBuf,
}

impl Programs {
    /// Finds them, and builds what is missing: some minutes, once for a target folder.
    ///
    /// # Errors
    /// Something is missing and Go is too, or its module proxy cannot be reached.
    pub fn find_or_build() -> Result<Self> {
        let assets = std::env::var_os(ASSETS_VARIABLE).map(PathBuf::from);
        if let Some(built) = std::env::var_os(FOLDER_VARIABLE) {
            return Ok(Self { assets, built: built.into() });
        }
        let programs = Self { assets, built: target_folder()?.join("kubernetes") };
        let missing = || Program::ALL.into_iter().filter(|program| !programs.is_there(*program)).collect::<Vec<_>>();
        if missing().is_empty() {
            return Ok(programs);
        }
        fs::create_dir_all(&programs.built).with_context(|| format!("making {}", programs.built.display()))?;
        // Tests are parallel, and so may be several runs of them.
        let lock = File::create(programs.built.join("lock"))?;
        let lock =
            Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).context("locking the build")?;
        for program in missing() {
            programs.build(program)?;
        }
        drop(lock);
        Ok(programs)
    }

    /// The folder for [`FOLDER_VARIABLE`].
    pub fn folder(&self) -> &Path {
        &self.built
    }

    pub fn path(&self, program: Program) -> PathBuf {
        let name = program.file_name();
        let asset = self.assets.as_ref().map(|folder| folder.join(name)).filter(|path| path.is_file());
        asset.unwrap_or_else(|| self.built.join(format!("{name}-{VERSION}")))
    }

    fn is_there(&self, program: Program) -> bool {
        self.path(program).is_file()
    }

    fn build(&self, program: Program) -> Result<()> {
        let name = program.file_name();
        let Some(go) = find_go() else {
            bail!(
                "{name} is missing: install Go 1.26 or later (https://go.dev/dl), from which tests build Kubernetes, or set {ASSETS_VARIABLE} to a folder that has it"
            );
        };
        eprintln!("building {name} of Kubernetes {VERSION} (once; some minutes)");
        let unfinished = self.built.join(format!("{name}-unfinished"));
        let version = format!("-s -w -X k8s.io/component-base/version.gitVersion={VERSION}");
        let output = Command::new(go)
            .args(["build", "-trimpath", "-mod=readonly", "-ldflags", &version, "-o"])
            .arg(&unfinished)
            .arg(program.package())
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("programs"))
            // No C compiler is needed for them.
            .env("CGO_ENABLED", "0")
            .output()
            .context("running go")?;
        ensure!(
            output.status.success(),
            "building {name} failed; is the Go module proxy reachable?\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        fs::rename(&unfinished, self.built.join(format!("{name}-{VERSION}"))).context("keeping what was built")
    }
}

/// The `go` program: on the path, or where its installer puts it.
pub fn find_go() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/local/go/bin")])
        .map(|folder| folder.join("go"))
        .find(|program| program.is_file())
}

/// The target folder this program was built into: a test is `target/<profile>/deps/<test>`, a program
/// `target/<profile>/<program>`.
fn target_folder() -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    let is_inner = |folder: &&Path| folder.ends_with("deps") || folder.ends_with("examples");
    let mut outer = this.ancestors().skip(1).skip_while(is_inner);
    let target = outer.nth(1).map(Path::to_owned);
    target.with_context(|| format!("{} is in no target folder", this.display()))
}
