//! [`Parser`]: a thread that parses large manifests beside the owner, so that everything else goes on meanwhile.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::files::Content;
use super::owner::Message;
use crate::manifest::Manifest;

/// A file to parse, and what it said before.
pub(crate) struct Work {
    /// Its path inside the manifests folder.
    pub(crate) file: String,
    pub(crate) content: Content,
    pub(crate) before: Option<Arc<Manifest>>,
}

impl Work {
    pub(crate) fn parse(self) -> Manifest {
        self.content.parse(self.before.as_deref())
    }

    fn done(self) -> Message {
        Message::Parsed { file: self.file.clone(), manifest: self.parse() }
    }
}

/// Where work is left. Files are parsed one after the other: one large file costs one core.
pub(crate) struct Parser {
    work: Sender<Work>,
}

impl Parser {
    /// Starts the thread; what it parsed goes to `inbox`. It ends when the parser is dropped and the file it is at is
    /// done; nobody waits for that.
    pub(crate) fn start(inbox: Sender<Message>) -> std::io::Result<Self> {
        let (parser, work) = Self::unstarted();
        std::thread::Builder::new().name("manifests".into()).spawn(move || {
            for work in work {
                // An owner that is gone wants nothing any more.
                if inbox.send(work.done()).is_err() {
                    return;
                }
            }
        })?;
        Ok(parser)
    }

    /// A parser, and the work that is left with it.
    fn unstarted() -> (Self, Receiver<Work>) {
        let (work, left) = channel();
        (Self { work }, left)
    }

    /// Leaves a file to be parsed; gives it back when the thread is gone.
    pub(crate) fn leave(&self, work: Work) -> Result<(), Work> {
        self.work.send(work).map_err(|unsent| unsent.0)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use api::kubernetes::Service;

    use super::*;
    use crate::folder::{Config, open_with};
    use crate::{Event, Watch};

    /// The longest any wait may take. Reached only by a failure.
    const LIMIT: Duration = Duration::from_secs(20);

    fn services(name: &str, count: usize, port: u16) -> String {
        let one = |index| {
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name}-{index}, namespace: shop }}\nspec:\n  ports:\n  - port: {port}\n---\n"
            )
        };
        (0..count).map(one).collect()
    }

    fn is_at(service: &Service, name: &str, port: i32) -> bool {
        let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
        service.metadata.name.as_deref() == Some(name) && ports.is_some_and(|ports| ports[0].port == port)
    }

    /// Every Service that changed until this one did.
    async fn seen_until(watch: &mut Watch<Service>, name: &str, port: i32) -> Vec<Service> {
        let mut seen = Vec::new();
        tokio::time::timeout(LIMIT, async {
            while !seen.last().is_some_and(|last| is_at(last, name, port)) {
                match watch.next().await.unwrap() {
                    Event::Applied(service) => seen.push(service),
                    other => panic!("{other:?}"),
                }
            }
        })
        .await
        .expect("what was waited for did not happen");
        seen
    }

    #[tokio::test]
    async fn while_a_large_manifest_is_parsed_other_files_are_followed_and_its_last_version_is_in_force() {
        let place = tempfile::tempdir().unwrap();
        let config = Config { manifests: place.path().join("manifests"), state: place.path().join("state") };
        fs::create_dir(&config.manifests).unwrap();
        let large = |port| fs::write(config.manifests.join("large.yaml"), services("large", 600, port)).unwrap();
        large(1);
        // A parser that takes its time: this test parses when it likes.
        let (parser, left) = Parser::unstarted();
        let mut inbox = None;
        let (store, _reports) = open_with(config.clone(), |sender| {
            inbox = Some(sender);
            Ok(parser)
        })
        .unwrap();
        let inbox = inbox.unwrap();
        let next = move |left: Receiver<Work>| async move {
            tokio::task::spawn_blocking(move || (left.recv_timeout(LIMIT).unwrap(), left)).await.unwrap()
        };
        let mut watch = store.watch::<Service>();
        assert!(matches!(watch.next().await, Some(Event::Reset(all)) if all.len() == 600));

        large(2);
        let (work, left) = next(left).await;
        fs::write(config.manifests.join("small.yaml"), services("small", 1, 1)).unwrap();
        let seen = seen_until(&mut watch, "small-0", 1).await;
        assert_eq!(seen.len(), 1, "nothing else changed");
        let kept = store.get::<Service>(Some("shop"), "large-0").await.unwrap().unwrap();
        assert!(is_at(&kept, "large-0", 1), "its last version is in force");

        // It changes once more while it is parsed: the versions come one after the other.
        large(3);
        fs::write(config.manifests.join("small.yaml"), services("small", 1, 2)).unwrap();
        seen_until(&mut watch, "small-0", 2).await;
        inbox.send(work.done()).unwrap();
        assert_eq!(seen_until(&mut watch, "large-99", 2).await.len(), 600);
        let (work, _left) = next(left).await;
        inbox.send(work.done()).unwrap();
        assert_eq!(seen_until(&mut watch, "large-99", 3).await.len(), 600);
    }
}
