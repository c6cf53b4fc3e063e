//! Which of what was lost or late is the doing of what was done to the clusters, and which nobody can explain.

use std::time::Duration;

use crate::traffic::load::Hurt;

/// TCP sends a lost SYN again after one second, then after two more: a request that an incident hurt ends by then.
const SENT_AGAIN: Duration = Duration::from_secs(3);

/// Something that was done to the clusters. Times are the load's.
#[derive(Clone, Debug)]
pub struct Incident {
    pub name: &'static str,
    pub begun: Duration,
    /// When it had happened, which a command takes a while to do.
    pub happened: Duration,
    /// For how long after that clients may notice; zero where they must not notice at all.
    pub noticed_for: Duration,
}

impl Incident {
    fn explains(&self, hurt: &Hurt) -> bool {
        let until = self.happened + self.noticed_for;
        !self.noticed_for.is_zero()
            && hurt.ended >= self.begun
            && hurt.begun <= until
            && hurt.ended <= until + SENT_AGAIN
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
        Hurt { begun, ended, count: 1, what: "request".into() }
    }

    fn incident(begun: u64, noticed_for: u64) -> Incident {
        let [begun, noticed_for] = [begun, noticed_for].map(Duration::from_millis);
        Incident { name: "a plug is pulled", begun, happened: begun, noticed_for }
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
}
