//! Steady questions to all DNS servers of a cluster at once, and which answers were lost or wrong.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use tokio::net::UdpSocket;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::traffic::dns;
use crate::traffic::load::{Harmed, Hurt, Shared, due};

/// An answer that is not there by then is lost: a resolver has asked the next server.
const LOST: Duration = Duration::from_secs(1);
/// The promise for a cluster that was lost: its endpoints are named no more.
pub const NAMED_NO_MORE: Duration = Duration::from_secs(2);
/// Lookups begin one by one, so often at most.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What is asked of whom.
#[derive(Clone, Debug, Default)]
pub struct Lookups {
    /// Every DNS server of the cluster, in both families.
    pub servers: Vec<[SocketAddr; 2]>,
    /// Names that must have an answer at all times.
    pub names: Vec<String>,
    /// What may be answered, and for an endpoint the cluster it is in.
    pub right: BTreeMap<IpAddr, Option<String>>,
}

/// Looks the names up in turn, in both families, so that all servers together get `rate` questions a second; returns
/// when the load was stopped and the last lookup ended.
pub(super) async fn look_up(shared: Arc<Shared>, lookups: Lookups, rate: u32) -> Result<()> {
    ensure!(!lookups.servers.is_empty() && !lookups.names.is_empty(), "lookups need a server and a name");
    let rate = f64::from(rate) / lookups.servers.len() as f64;
    let lookups = Arc::new(lookups);
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let under_way = Arc::new(());
    let mut started = 0_u64;
    while !shared.is_stopped() {
        ticks.tick().await;
        while started < due(shared.now(), rate) {
            let (shared, lookups, under_way) = (shared.clone(), lookups.clone(), under_way.clone());
            let number = usize::try_from(started)?;
            tokio::spawn(async move {
                lookups.once(&shared, number).await;
                drop(under_way);
            });
            started += 1;
        }
    }
    while Arc::strong_count(&under_way) > 1 {
        ticks.tick().await;
    }
    Ok(())
}

impl Lookups {
    /// One name and type at all servers at once.
    async fn once(&self, shared: &Shared, number: usize) {
        let kinds = [RecordType::A, RecordType::AAAA];
        let Some(name) = self.names.get(number / kinds.len() % self.names.len().max(1)) else { return };
        let kind = kinds[number % kinds.len()];
        // Both types by both families, in the end.
        let family = number / kinds.len() / self.names.len().max(1) % 2;
        let begun = shared.now();
        let asked: Vec<_> = self
            .servers
            .iter()
            .map(|server| {
                let (server, question) = (server[family], dns::question(name, kind, dns::Transport::Udp));
                tokio::spawn(async move { (server, answer(server, question).await) })
            })
            .collect();
        let mut bad = Vec::new();
        for one in asked {
            let (server, answer) = match one.await {
                Ok(answered) => answered,
                Err(error) => {
                    bad.push(format!("asking panicked: {error}"));
                    continue;
                }
            };
            if let Err(error) = answer.and_then(|answer| self.judge(&answer, |cluster| shared.lost_for(cluster, begun)))
            {
                bad.push(format!("{server}: {error:#}"));
            }
        }
        let ended = shared.now();
        shared.report().lookups += 1;
        if bad.is_empty() {
            return;
        }
        let of = if bad.len() < self.servers.len() { Harmed::OneServer } else { Harmed::Name };
        let what = format!("lookup of {name} {kind}: {}", bad.join("; "));
        shared.hurt(Hurt { begun, ended, count: 1, of, what });
    }

    /// Errors when this is no answer, or one that may not be given. `lost_for` says how long ago a cluster was lost.
    fn judge(&self, answer: &Message, lost_for: impl Fn(&str) -> Option<Duration>) -> Result<()> {
        let code = answer.metadata.response_code;
        ensure!(code == ResponseCode::NoError, "{code}");
        let addresses = dns::addresses(answer);
        ensure!(!addresses.is_empty(), "an answer without addresses");
        for address in addresses {
            let Some(cluster) = self.right.get(&address) else { bail!("{address}, which nobody exports") };
            let lost_for = cluster.as_deref().and_then(&lost_for).unwrap_or_default();
            ensure!(
                lost_for <= NAMED_NO_MORE,
                "{address} of {}, which was lost {:.2} s ago",
                cluster.as_deref().unwrap_or_default(),
                lost_for.as_secs_f64()
            );
        }
        Ok(())
    }
}

async fn answer(server: SocketAddr, question: Result<Vec<u8>>) -> Result<Message> {
    let question = question?;
    let from: SocketAddr =
        if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(from).await?;
    socket.connect(server).await?;
    let mut buffer = vec![0; 4096];
    let exchange = async {
        socket.send(&question).await.context("asking")?;
        socket.recv(&mut buffer).await.context("no answer")
    };
    let length = timeout(LOST, exchange).await.with_context(|| format!("no answer for {} s", LOST.as_secs()))??;
    let answer = buffer.get(..length).unwrap_or_default();
    ensure!(answer.get(..2) == question.get(..2), "the answer has another question's number");
    Message::from_vec(answer).context("the answer is no DNS message")
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{MessageType, OpCode};
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, Record};

    use super::*;

    fn lookups() -> Lookups {
        let right = [([10, 101, 0, 1], None), ([10, 3, 1, 4], Some("cedar".to_owned()))];
        let right = right.into_iter().map(|(address, cluster)| (IpAddr::from(address), cluster)).collect();
        Lookups { right, ..Lookups::default() }
    }

    fn answer_of(addresses: &[[u8; 4]]) -> Message {
        let mut message = Message::new(1, MessageType::Response, OpCode::Query);
        for address in addresses {
            message.add_answer(Record::from_rdata(Name::root(), 1, RData::A(A::from(Ipv4Addr::from(*address)))));
        }
        message
    }

    #[test]
    fn an_answer_without_addresses_or_with_one_that_nobody_exports_is_wrong() {
        let lives = |_: &str| None;
        lookups().judge(&answer_of(&[[10, 101, 0, 1]]), lives).unwrap();
        lookups().judge(&answer_of(&[[10, 3, 1, 4]]), lives).unwrap();
        for wrong in [answer_of(&[]), answer_of(&[[10, 3, 1, 4], [10, 9, 9, 9]])] {
            lookups().judge(&wrong, lives).unwrap_err();
        }
        let mut denied = answer_of(&[[10, 101, 0, 1]]);
        denied.metadata.response_code = ResponseCode::NXDomain;
        lookups().judge(&denied, lives).unwrap_err();
    }

    #[test]
    fn the_endpoint_of_a_lost_cluster_may_be_named_for_as_long_as_is_promised_and_no_longer() {
        let named = answer_of(&[[10, 101, 0, 1], [10, 3, 1, 4]]);
        lookups().judge(&named, |_| Some(NAMED_NO_MORE)).unwrap();
        let late = lookups().judge(&named, |_| Some(NAMED_NO_MORE + Duration::from_millis(10))).unwrap_err();
        assert!(late.to_string().contains("10.3.1.4 of cedar, which was lost 2.01 s ago"), "{late}");
    }
}
