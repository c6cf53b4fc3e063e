//! What survives when the process that owns a folder is killed in the middle of its work.

mod worlds;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use api::kubernetes::{Lease, LeaseSpec, ObjectMeta};
use store::{Store, folder};
use worlds::Place;

/// Set for the child: where its folders are.
const CHILD: &str = "TOMBOLO_TEST_KILLED_CHILD";
/// Writes the child is let make before it is killed.
const WRITES: usize = 300;

fn lease(index: usize) -> Lease {
    Lease {
        metadata: ObjectMeta {
            namespace: Some("tombolo-system".into()),
            name: Some(format!("lease-{}", index % 10)),
            ..Default::default()
        },
        spec: Some(LeaseSpec { holder_identity: Some(index.to_string()), ..Default::default() }),
    }
}

async fn write(store: &Store, index: usize) -> Lease {
    let new = lease(index);
    let name = new.metadata.name.as_deref().unwrap();
    match store.get::<Lease>(Some("tombolo-system"), name).await.unwrap() {
        Some(known) => store.update(&Lease { spec: new.spec, ..known }).await.unwrap(),
        None => store.create(&new).await.unwrap(),
    }
}

/// Writes without end, and says each write once it was acknowledged.
async fn child(config: folder::Config) {
    let (store, _reports) = folder::open(config).unwrap();
    for index in 0.. {
        let written = write(&store, index).await;
        println!("acknowledged {index} {}", written.metadata.resource_version.unwrap());
    }
}

#[tokio::test]
async fn a_write_that_was_acknowledged_survives_a_sigkill() {
    if let Some(path) = std::env::var_os(CHILD) {
        let path = std::path::PathBuf::from(path);
        return child(folder::Config { manifests: path.join("manifests"), state: path.join("state") }).await;
    }
    let place = Place::new();
    let mut next = 0;
    for _round in 0..3 {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["a_write_that_was_acknowledged_survives_a_sigkill", "--exact", "--nocapture"])
            .env(CHILD, place.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut acknowledged = Vec::new();
        for line in lines {
            let line = line.unwrap();
            let mut words = line.split_whitespace().skip_while(|word| *word != "acknowledged").skip(1);
            if let (Some(index), Some(version)) = (words.next(), words.next()) {
                acknowledged.push((index.parse::<usize>().unwrap(), version.to_owned()));
                if acknowledged.len() == WRITES {
                    process.kill().unwrap();
                }
            }
        }
        process.wait().unwrap();
        assert!(acknowledged.len() >= WRITES, "{acknowledged:?}");

        let (store, reports) = place.open();
        assert!(reports.current().is_empty(), "{:?}", reports.current());
        for (index, version) in acknowledged.iter().rev().take(10) {
            let name = lease(*index).metadata.name.unwrap();
            let kept =
                store.get::<Lease>(Some("tombolo-system"), &name).await.unwrap().expect("acknowledged, yet gone");
            let held: usize = kept.spec.unwrap().holder_identity.unwrap().parse().unwrap();
            // One more write may have been made than was said.
            assert!(held >= *index, "{name} holds {held}, acknowledged was {index} as version {version}");
            next = next.max(kept.metadata.resource_version.unwrap().parse::<u64>().unwrap());
        }
        let new = write(&store, 0).await;
        assert!(new.metadata.resource_version.unwrap().parse::<u64>().unwrap() > next, "versions never go back");
    }
}
