//! Which of what was lost or late is the doing of what was done to the clusters, and which nobody can explain.

use std::time::Duration;

use crate::traffic::load::{Harmed, Hurt};

/// TCP sends a lost SYN again after one second, then after two more: a request that an incident hurt ends by then.
const SENT_AGAIN: Duration = Duration::from_secs(3);

/// How long all DNS servers of a cluster may be away together, when all are started anew at once: from their readiness.
const NAMES_MISSED: Duration = Duration::from_millis(200);
/// For so long a DNS server whose host is back may be silent or have to hear first whom its gateways reach: what is lost
/// is asked again a second later.
const SERVER_BACK: Duration = Duration::from_secs(1);

/// Something that was done to the clusters. Times are the load's.
#[derive(Clone, Debug)]
pub struct Incident {
    pub name: &'static str,
    pub begun: Duration,
    /// When it had happened, which a command takes a while to do.
    pub happened: Duration,
    /// For how long after that clients may notice; zero where they must not notice at all.
    pub noticed_for: Duration,
    /// The DNS servers of the clients' cluster that it takes away.
    pub servers: Servers,
    /// When it was undone, once it was.
    pub undone: Option<Duration>,
}

/// How many of the DNS servers that clients ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Servers {
    None,
    One,
    All,
}

impl Incident {
    fn explains(&self, hurt: &Hurt) -> bool {
        let (until, given_up_by) = match (hurt.of, self.servers) {
            (Harmed::Traffic, _) if !self.noticed_for.is_zero() => {
                let until = self.happened + self.noticed_for;
                (until, until + SENT_AGAIN)
            }
            (Harmed::OneServer, Servers::One | Servers::All) => {
                let until = self.undone.map_or(Duration::MAX, |undone| undone + SERVER_BACK);
                (until, until.saturating_add(SERVER_BACK))
            }
            // A lookup that began before is lost a second later.
            (Harmed::Name, Servers::All) => {
                let until = self.happened + NAMES_MISSED;
                (until, until + SERVER_BACK)
            }
            _ => return false,
        };
        hurt.ended >= self.begun && hurt.begun <= until && hurt.ended <= given_up_by
    }
}

/// For each incident how much it explains, and what none does.
pub fn attribute<'a>(incidents: &[Incident], hurt: &'a [Hurt]) -> (Vec<u64>, Vec<&'a Hurt>) {
    let mut explained = vec![0; incidents.len()];
    let mut unexplained = Vec::new();
    for one in hurt {
        // The last that can: the one before it is long over.
        match incidents.iter().rposition(|incident| incident.explains(one)) {
            Some(place) => explained[place] += one.count,
            None => unexplained.push(one),
        }
    }
    (explained, unexplained)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hurt(begun: u64, ended: u64) -> Hurt {
        let [begun, ended] = [begun, ended].map(Duration::from_millis);
        Hurt { begun, ended, count: 1, of: Harmed::Traffic, what: "request".into() }
    }

    fn incident(begun: u64, noticed_for: u64) -> Incident {
        let [begun, noticed_for] = [begun, noticed_for].map(Duration::from_millis);
        let servers = Servers::None;
        Incident { name: "a plug is pulled", begun, happened: begun, noticed_for, servers, undone: None }
    }

    #[test]
    fn what_was_under_way_when_it_happened_or_began_within_the_promise_is_explained_and_nothing_else_is() {
        let incidents = [incident(10_000, 1_000)];
        for explained in [hurt(9_990, 10_950), hurt(10_400, 11_400), hurt(11_000, 14_000)] {
            assert_eq!(attribute(&incidents, &[explained]).0, [1]);
        }
        for unexplained in [hurt(9_000, 9_999), hurt(11_001, 12_100), hurt(10_500, 14_001)] {
            assert_eq!(attribute(&incidents, &[unexplained]).1.len(), 1);
        }
    }

    #[test]
    fn what_nobody_may_notice_explains_nothing_and_of_two_incidents_the_later_explains() {
        assert_eq!(attribute(&[incident(10_000, 0)], &[hurt(10_000, 10_000)]).1.len(), 1);
        let two = [incident(10_000, 1_000), incident(10_800, 1_000)];
        assert_eq!(attribute(&two, &[hurt(10_900, 11_900)]).0, [0, 1]);
    }

    fn lookup(of: Harmed, begun: u64) -> Hurt {
        Hurt { of, ..hurt(begun, begun + 100) }
    }

    #[test]
    fn a_silent_server_is_explained_while_its_host_is_away_and_a_name_that_none_answers_is_not() {
        let away = Incident { servers: Servers::One, undone: Some(Duration::from_secs(14)), ..incident(10_000, 1_000) };
        let one = |begun| lookup(Harmed::OneServer, begun);
        for explained in [one(9_950), one(13_000), one(14_900)] {
            assert_eq!(attribute(std::slice::from_ref(&away), &[explained]).0, [1]);
        }
        for unexplained in [one(9_000), one(15_100), lookup(Harmed::Name, 10_500)] {
            assert_eq!(attribute(std::slice::from_ref(&away), &[unexplained]).1.len(), 1);
        }
        let elsewhere = Incident { servers: Servers::None, ..away };
        assert_eq!(attribute(&[elsewhere], &[one(13_000)]).1.len(), 1);
    }

    #[test]
    fn names_may_be_missed_only_while_all_servers_are_started_anew() {
        let all = Incident { servers: Servers::All, happened: Duration::from_secs(12), ..incident(10_000, 1_000) };
        assert_eq!(attribute(std::slice::from_ref(&all), &[lookup(Harmed::Name, 12_150)]).0, [1]);
        assert_eq!(attribute(&[all], &[lookup(Harmed::Name, 12_250)]).1.len(), 1);
    }
}
