//! Conditions on objects: set so that the time of the last transition moves only with a transition.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use api::conditions::ConditionType;
use api::kubernetes::{Condition, Time};
use api::time::WallTime;

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    True,
    False,
    Unknown,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Status {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// What a condition should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub condition: ConditionType,
    pub status: Status,
    pub reason: String,
    pub message: String,
}

impl Wanted {
    pub fn new(
        condition: ConditionType,
        status: impl Into<Status>,
        reason: impl ToString,
        message: impl Into<String>,
    ) -> Self {
        Self { condition, status: status.into(), reason: reason.to_string(), message: message.into() }
    }
}

/// The time as objects carry it.
pub fn object_time(now: WallTime) -> Time {
    let millis = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
    Time(jiff::Timestamp::from_second(millis / 1_000).unwrap_or_default())
}

/// `current` with `wanted` in it. Conditions of other types stay: they are somebody else's.
pub fn merged(current: &[Condition], wanted: &[Wanted], generation: Option<i64>, now: WallTime) -> Vec<Condition> {
    let mut conditions = current.to_vec();
    for want in wanted {
        let place = conditions.iter_mut().find(|condition| condition.type_ == want.condition.as_str());
        let fresh = Condition {
            type_: want.condition.to_string(),
            status: want.status.as_str().into(),
            reason: want.reason.clone(),
            // The schema's bound.
            message: want.message.chars().take(32_768).collect(),
            observed_generation: generation,
            last_transition_time: object_time(now),
        };
        match place {
            Some(held) if held.status == fresh.status => {
                *held = Condition { last_transition_time: held.last_transition_time.clone(), ..fresh };
            }
            Some(held) => *held = fresh,
            None => conditions.push(fresh),
        }
    }
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::time;

    #[test]
    fn the_time_moves_with_the_status_alone_and_foreign_conditions_stay() {
        let ready = |status, reason: &str| Wanted::new(ConditionType::Ready, status, reason, "m");
        let mut foreign = merged(&[], &[ready(Status::True, "Ready")], None, time(1));
        foreign[0].type_ = "Theirs".into();
        let first = merged(&foreign, &[ready(Status::False, "Pending")], Some(1), time(2));
        let second = merged(&first, &[ready(Status::False, "Failed")], Some(2), time(3));
        let third = merged(&second, &[ready(Status::True, "Ready")], Some(2), time(4));
        assert_eq!(second[1].last_transition_time, object_time(time(2)));
        assert_eq!(third[1].last_transition_time, object_time(time(4)));
        assert_eq!(third[0], foreign[0]);
    }
}
