//! What of a status is written when something else than a [`Record`](super::plan::Record) changed: a merge
//! patch (RFC 7396) of the fields that are new, other or gone.

use serde_json::{Map, Value, json};

/// Fields that only [`Record`](super::plan::Record)s write.
const WRITTEN_ONCE: [&str; 3] = ["decision", "resumedAt", "resolution"];

/// The fields of a Migration's status that changed from `old` (null: there was none) to `new`, as a merge
/// patch; `None` when none did. The write-once fields are left out, whatever they say.
pub fn difference(mut old: Value, mut new: Value) -> Option<Value> {
    for fields in [&mut old, &mut new].into_iter().filter_map(Value::as_object_mut) {
        fields.retain(|key, _| !WRITTEN_ONCE.contains(&key.as_str()));
    }
    merge_patch(old, new)
}

/// What makes the one of the other; `None` when they are alike. A field within a field that is there no more
/// has to be said to be null too, or it stays.
fn merge_patch(old: Value, new: Value) -> Option<Value> {
    let (mut old, new) = match (old, new) {
        (Value::Object(old), Value::Object(new)) => (old, new),
        (Value::Null, Value::Object(new)) => (Map::new(), new),
        (old, new) => return (old != new).then_some(new),
    };
    let mut change = Map::new();
    for (key, value) in new {
        let before = old.remove(&key);
        // An empty object that was not there is something new all the same.
        let is_new = before.is_none() && value.is_object();
        match merge_patch(before.unwrap_or_default(), value) {
            Some(value) => _ = change.insert(key, value),
            None if is_new => _ = change.insert(key, json!({})),
            None => {}
        }
    }
    change.extend(old.into_iter().map(|(key, _)| (key, Value::Null)));
    (!change.is_empty()).then_some(Value::Object(change))
}

/// Does what the API server does with a merge patch: what it does not name stays, what is null goes.
#[cfg(test)]
pub(super) fn apply(kept: &mut Value, change: Value) {
    let Value::Object(change) = change else {
        *kept = change;
        return;
    };
    if !kept.is_object() {
        *kept = json!({});
    }
    let Some(fields) = kept.as_object_mut() else { return };
    for (key, value) in change {
        if value.is_null() {
            fields.remove(&key);
        } else {
            apply(fields.entry(key).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_written_and_never_a_write_once_field() {
        let old =
            json!({"step": "Voting", "address": "10.0.0.1", "frozenAt": "x", "decision": "Commit"});
        let new = json!({"step": "Committed", "address": "10.0.0.1", "resumedAt": "y"});
        assert_eq!(
            difference(old.clone(), new),
            Some(json!({"step": "Committed", "frozenAt": null}))
        );
        assert_eq!(difference(old.clone(), old), None);
        assert_eq!(
            difference(Value::Null, json!({"step": "Pending"})),
            Some(json!({"step": "Pending"}))
        );
    }

    #[test]
    fn what_is_no_more_within_a_field_goes() {
        let old = json!({"target": {"node": "a", "podUID": "1"}, "rounds": [1]});
        let new = json!({"target": {"node": "a"}, "rounds": [1], "forecast": {}});
        let change = json!({"target": {"podUID": null}, "forecast": {}});
        assert_eq!(difference(old, new), Some(change));
    }

    #[test]
    fn what_the_api_server_makes_of_the_difference_is_the_new_status() {
        let states = [
            Value::Null,
            json!({}),
            json!({"step": "Voting"}),
            json!({"target": {}}),
            json!({"target": {"node": "a"}, "rounds": [{"index": 1}, {"index": 2}]}),
            json!({"target": {"node": "b", "podUID": "1"}, "forecast": {"of": {"bytes": 1}}}),
            json!({"target": {"podUID": "2"}, "forecast": {"of": {}}, "rounds": []}),
            json!({"step": "Voting", "forecast": {"of": {"rounds": 3}}, "rounds": [{"index": 2}]}),
        ];
        for old in &states {
            for new in &states[1..] {
                let mut kept = old.clone();
                if let Some(change) = difference(old.clone(), new.clone()) {
                    apply(&mut kept, change);
                }
                // No status at all is as good as an empty one.
                let kept = if kept.is_null() { json!({}) } else { kept };
                assert_eq!(kept, *new, "from {old}");
            }
        }
    }
}
