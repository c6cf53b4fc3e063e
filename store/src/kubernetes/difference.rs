//! The smallest JSON merge patch (RFC 7396) from one object to another. It thinks.

use serde_json::{Map, Value};

/// What must be sent to make `from` what `to` is; `None` when nothing must. Lists are replaced whole, as RFC 7396 has it.
pub(super) fn merge_patch(from: &Value, to: &Value) -> Option<Value> {
    if from == to {
        return None;
    }
    let (Value::Object(from), Value::Object(to)) = (from, to) else { return Some(to.clone()) };
    let mut patch = Map::new();
    for field in from.keys().filter(|field| !to.contains_key(*field)) {
        patch.insert(field.clone(), Value::Null);
    }
    for (field, wanted) in to {
        let change = match from.get(field) {
            Some(known) => merge_patch(known, wanted),
            // A null would take the field away instead of setting it; absent it is already.
            None => Some(wanted.clone()).filter(|wanted| !wanted.is_null()),
        };
        patch.extend(change.map(|change| (field.clone(), change)));
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// RFC 7396, section 2.
    fn applied(target: &Value, patch: &Value) -> Value {
        let Value::Object(patch) = patch else { return patch.clone() };
        let mut target = target.as_object().cloned().unwrap_or_default();
        for (field, change) in patch {
            if change.is_null() {
                target.remove(field);
            } else {
                let known = target.get(field).cloned().unwrap_or(Value::Null);
                target.insert(field.clone(), applied(&known, change));
            }
        }
        Value::Object(target)
    }

    #[test]
    fn only_what_differs_is_sent_and_what_is_gone_is_taken_away() {
        let from = json!({"a": 1, "b": {"c": [1, 2], "d": "x"}, "e": true});
        let to = json!({"a": 1, "b": {"c": [1], "d": "x"}, "f": "new"});
        assert_eq!(merge_patch(&from, &to), Some(json!({"b": {"c": [1]}, "e": null, "f": "new"})));
        assert_eq!(merge_patch(&to, &to), None);
    }

    /// Objects without nulls, as Kubernetes keeps them.
    fn object() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![any::<bool>().prop_map(Value::from), (0..3u8).prop_map(Value::from)];
        let inner = leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::btree_map("[a-c]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        });
        proptest::collection::btree_map("[a-c]", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn applied_by_the_rules_of_the_rfc_it_makes_one_of_the_other(from in object(), to in object()) {
            let patched = merge_patch(&from, &to).map_or_else(|| from.clone(), |patch| applied(&from, &patch));
            prop_assert_eq!(patched, to);
        }
    }
}
