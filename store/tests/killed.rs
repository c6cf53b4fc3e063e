//! What survives when a process is killed in the middle of its work: one that owns a folder, and one that takes a feed.

mod worlds;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use api::kubernetes::{Lease, LeaseSpec, ObjectMeta, Service};
use store::feed::{self, Role};
use store::{Event, Store, folder};
use worlds::{Listener, Place, before_the_limit};

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

/// Set for the child that is an agent: the controller's address and the place.
const AGENT: &str = "TOMBOLO_TEST_KILLED_AGENT";

fn service(index: usize) -> Service {
    let metadata =
        ObjectMeta { namespace: Some("shop".into()), name: Some(format!("web-{index}")), ..Default::default() };
    Service { metadata, ..Default::default() }
}

/// Takes a feed, and says each Service once it was told of it.
async fn agent(config: feed::Config) {
    let store = feed::connect(config).unwrap();
    let mut watch = store.watch::<Service>();
    while let Some(event) = watch.next().await {
        let told = match event {
            Event::Reset(all) => all,
            Event::Applied(one) => vec![one],
            Event::Deleted(_) => continue,
        };
        for service in told {
            println!("told {}", service.metadata.name.unwrap());
        }
    }
}

fn agent_of(folder: &std::path::Path, controller: &str) -> feed::Config {
    feed::Config {
        controllers: vec![controller.into()],
        enrolment: folder.join("state/agents.key"),
        token: None,
        identity: folder.join("agent/identity.key"),
        cache: folder.join("agent/cache"),
        role: Role::Dns,
        name: "worker".into(),
        addresses: vec![],
        pod_prefixes: vec![],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_agent_was_told_survives_its_sigkill() {
    if let Ok(told) = std::env::var(AGENT) {
        let (address, folder) = told.split_once(' ').unwrap();
        return agent(agent_of(folder.as_ref(), address)).await;
    }
    let place = Place::new();
    let (owner, _reports) = place.open();
    let listener = Listener::start(&place, owner.clone(), "127.0.0.1:0".parse().unwrap()).await;
    let address = listener.address.to_string();
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["what_an_agent_was_told_survives_its_sigkill", "--exact", "--nocapture"])
        .env(AGENT, format!("{address} {}", place.path().display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let writing = tokio::spawn(async move {
        for index in 0.. {
            owner.create(&service(index)).await.unwrap();
        }
    });
    let output = process.stdout.take().unwrap();
    let reading = tokio::task::spawn_blocking(move || {
        let mut told: Vec<String> = Vec::new();
        for line in BufReader::new(output).lines() {
            let line = line.unwrap();
            let mut words = line.split_whitespace().skip_while(|word| *word != "told").skip(1);
            if let Some(name) = words.next() {
                told.push(name.to_owned());
                if told.len() == WRITES {
                    process.kill().unwrap();
                }
            }
        }
        process.wait().unwrap();
        told
    });
    let told = before_the_limit(reading).await.unwrap();
    writing.abort();
    drop(listener);
    assert!(told.len() >= WRITES);

    let store = feed::connect(agent_of(place.path(), &address)).unwrap();
    let kept = store.list::<Service>().await.unwrap();
    let kept: std::collections::BTreeSet<_> = kept.into_iter().filter_map(|service| service.metadata.name).collect();
    let missing: Vec<_> = told.iter().filter(|name| !kept.contains(*name)).collect();
    assert!(missing.is_empty(), "told, yet not kept: {missing:?}");
}
