//! `tombolo gather`: one archive with what a helper from outside needs, and no secret in it.
//!
//! Of this host: what each part says of itself. Of each cluster whose context is given: our objects and those that
//! explain them. What could not be had is named in the archive and on the terminal.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use api::kubernetes::{Lease, Node};
use api::{
    ClusterMember, ClusterPeer, ClusterRoutingPolicy, Kind, LocalCluster, RoutingPolicy, ServiceExport, ServiceImport,
    TunnelGateway,
};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;
use serde_json::Value;
use store::Store;

use crate::arguments::GatherArguments;
use crate::ask::{self, Answer, Part};
use crate::output::{Format, Glyph, Outcome};

/// How long one kind of one cluster may take: ten thousand objects in pages, over a slow line.
const LIMIT: Duration = Duration::from_secs(30);

/// What the kernel says of this host that explains most riddles.
const KERNEL_FILES: [&str; 8] = [
    "/proc/version",
    "/proc/net/dev",
    "/proc/net/snmp",
    "/proc/net/snmp6",
    "/proc/net/netstat",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/net/ipv4/conf/all/rp_filter",
    "/proc/sys/net/ipv6/conf/all/forwarding",
];

/// The archive so far.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Gathered {
    #[serde(skip)]
    files: BTreeMap<String, Vec<u8>>,
    /// What could not be had, and why.
    missing: BTreeMap<String, String>,
}

impl Gathered {
    fn put(&mut self, name: String, bytes: impl Into<Vec<u8>>) {
        self.files.insert(name, bytes.into());
    }

    fn put_json(&mut self, name: String, value: &impl Serialize) {
        match serde_json::to_vec_pretty(value) {
            Ok(bytes) => self.put(name, bytes),
            Err(error) => self.miss(name, error),
        }
    }

    fn miss(&mut self, name: String, why: impl ToString) {
        self.missing.insert(name, why.to_string());
    }

    /// A tar archive (POSIX.1-1988), compressed; every name below one folder.
    fn archive(&self, folder: &str, modified: u64) -> std::io::Result<Vec<u8>> {
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
        for (name, bytes) in &self.files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(modified);
            archive.append_data(&mut header, format!("{folder}/{name}"), bytes.as_slice())?;
        }
        archive.into_inner()?.finish()
    }
}

pub async fn run(run_dir: &Path, arguments: &GatherArguments) -> anyhow::Result<Outcome> {
    let mut gathered = Gathered::default();
    of_host(&mut gathered, run_dir, arguments.since).await;
    for context in &arguments.contexts {
        of_cluster(&mut gathered, arguments.kubeconfig.as_deref(), context).await;
    }
    if gathered.files.is_empty() {
        return Ok(ask::nobody_answers(run_dir));
    }
    of_kernel(&mut gathered);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    gathered
        .put("version.txt".into(), format!("tombolo {}\ngathered at {now} (Unix time)\n", env!("CARGO_PKG_VERSION")));
    let missing: String = gathered.missing.iter().map(|(name, why)| format!("{name}: {why}\n")).collect();
    gathered.put("missing.txt".into(), missing);

    let folder = format!("tombolo-{now}");
    let file = arguments.file.clone().unwrap_or_else(|| PathBuf::from(format!("{folder}.tar.gz")));
    let bytes = gathered.archive(&folder, now).context("making the archive")?;
    write(&file, &bytes).with_context(|| format!("cannot write {}: name another place with --file", file.display()))?;
    match arguments.shown.format {
        Format::Json => println!(
            "{}",
            serde_json::json!({"file": file, "bytes": bytes.len(), "files": gathered.files.len(), "missing": gathered.missing})
        ),
        Format::Text => {
            println!(
                "{} {}  {} files, {} KiB",
                Glyph::Good.text(),
                file.display(),
                gathered.files.len(),
                bytes.len() / 1024
            );
            for (name, why) in &gathered.missing {
                println!("{} {name}  {why}", Glyph::Unknown.text());
            }
        }
    }
    Ok(if gathered.missing.is_empty() { Outcome::Good } else { Outcome::CouldNotFindOut })
}

/// Whole or not at all, and for its owner alone: addresses are nobody else's business.
fn write(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside = folder.join(format!(".{}.part", file.file_name().unwrap_or_default().to_string_lossy()));
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut out = options.write(true).create(true).truncate(true).open(&beside)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    std::fs::rename(beside, file)
}

async fn of_host(gathered: &mut Gathered, run_dir: &Path, since: Duration) {
    for part in Part::ALL {
        let name = |file: &str| format!("host/{}/{file}", part.name());
        let Some(readiness) = ask::readiness(run_dir, part).await else { continue };
        gathered.put(
            name("ready.txt"),
            match readiness {
                Ok(()) => "ready\n".to_owned(),
                Err(why) => format!("{why}\n"),
            },
        );
        let events = format!("events?since={}", since.as_secs());
        for (file, question) in [("status.json", "status"), ("events.json", &events), ("refusals.json", "refusals")] {
            // It has no journal: what it answers follows from what others note.
            if part == Part::Dns && file == "events.json" {
                continue;
            }
            match ask::ask(run_dir, part, question).await {
                Answer::Known(answer) => gathered.put_json(name(file), &answer),
                Answer::NotHere | Answer::Stopped => gathered.miss(name(file), "the part does not run any more"),
                Answer::Silent(why) => gathered.miss(name(file), why),
            }
        }
        match ask::metrics(run_dir, part).await {
            Ok(text) => gathered.put(name("metrics.txt"), text),
            Err(why) => gathered.miss(name("metrics.txt"), why),
        }
    }
}

fn of_kernel(gathered: &mut Gathered) {
    for path in KERNEL_FILES {
        let name = format!("host/kernel{path}");
        match std::fs::read(path) {
            Ok(bytes) => gathered.put(name, bytes),
            Err(error) => gathered.miss(name, error),
        }
    }
}

async fn of_cluster(gathered: &mut Gathered, kubeconfig: Option<&Path>, context: &str) {
    let store = match store::kubernetes::connect_to(kubeconfig, context).await {
        Ok(store) => store,
        Err(error) => return gathered.miss(format!("clusters/{context}"), error),
    };
    // Never a Secret: what is not asked for cannot be in it.
    of_kind::<LocalCluster>(gathered, &store, context).await;
    of_kind::<ClusterPeer>(gathered, &store, context).await;
    of_kind::<ClusterMember>(gathered, &store, context).await;
    of_kind::<TunnelGateway>(gathered, &store, context).await;
    of_kind::<RoutingPolicy>(gathered, &store, context).await;
    of_kind::<ClusterRoutingPolicy>(gathered, &store, context).await;
    of_kind::<ServiceExport>(gathered, &store, context).await;
    of_kind::<ServiceImport>(gathered, &store, context).await;
    of_kind::<Lease>(gathered, &store, context).await;
    of_kind::<Node>(gathered, &store, context).await;
}

async fn of_kind<K: Kind>(gathered: &mut Gathered, store: &Store, context: &str) {
    let name = format!("clusters/{context}/{}.json", K::plural(&()));
    let listed = tokio::time::timeout(LIMIT, store.list::<K>()).await;
    let listed = match listed {
        Ok(Ok(listed)) => listed,
        Ok(Err(error)) => return gathered.miss(name, error),
        Err(_) => return gathered.miss(name, format!("no answer within {} s", LIMIT.as_secs())),
    };
    let objects: Vec<Value> = listed.iter().filter_map(|object| serde_json::to_value(object).ok()).map(brief).collect();
    gathered.put_json(name, &objects);
}

/// Without what says who wrote which field, and what was applied before: long, and of no use here.
fn brief(mut object: Value) -> Value {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
    }
    object
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_archive_holds_every_file_below_one_folder() {
        let mut gathered = Gathered::default();
        gathered.put("host/dns/metrics.txt".into(), "tombolo_dns_up 1\n");
        // Longer than the hundred bytes that a tar header has for a name.
        let long = format!("clusters/{}/nodes.json", "x".repeat(120));
        gathered.put_json(long.clone(), &json!([1]));
        let bytes = gathered.archive("tombolo-1", 1).unwrap();
        let mut archive = tar::Archive::new(GzDecoder::new(bytes.as_slice()));
        let mut found = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.insert(entry.path().unwrap().display().to_string(), text);
        }
        assert_eq!(found["tombolo-1/host/dns/metrics.txt"], "tombolo_dns_up 1\n");
        assert_eq!(found[&format!("tombolo-1/{long}")], "[\n  1\n]");
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn the_archive_is_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("it.tar.gz");
        write(&file, b"bytes").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
        assert_eq!((std::fs::read(&file).unwrap().as_slice(), mode & 0o777), (b"bytes".as_slice(), 0o600));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn objects_are_shown_without_their_bookkeeping() {
        let object = json!({"metadata": {"name": "a", "managedFields": [1], "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": "{}", "tombolo.dev/state": "Drained"}}});
        let annotations = json!({"tombolo.dev/state": "Drained"});
        assert_eq!(brief(object), json!({"metadata": {"name": "a", "annotations": annotations}}));
    }
}
