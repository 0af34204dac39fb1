//! What each side says of itself to the rest of the cluster: votes and outcomes, published per
//! Migration UID in its own Node's status (and as a hint over RPC). Every field only ever goes
//! from unset to set, so an old copy of a word is merely a part of the truth.

use serde::{Deserialize, Serialize};

use crate::rules::{Rule, holds};

/// Longest name that a side gives to its failure, in characters: it may become the reason of a condition.
pub const MAX_REASON: usize = 64;
/// Longest sentence that a side says to people, in characters.
pub const MAX_MESSAGE: usize = 2048;

/// How the source's part ended. Final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceOutcome {
    /// The pod is an ordinary pod again.
    Opened,
    /// Its tasks were killed; it runs on the target.
    Released,
}

/// How the target's part ends. Final, and irrevocable from the moment it is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetOutcome {
    /// The application was not let run here, and never will be. (A restore whose CRIU is killed between its
    /// last stop and the freeze lets tasks run for a moment, behind the closed network; they were killed.)
    NeverThawed,
    /// The application runs here, as an ordinary pod.
    Resumed,
    /// It may have run here; it has stopped and will never run here again. A pod that was made again says this also
    /// where it was not let run, but may have been let go before it was held.
    Stopped,
    /// A restore on trial: nothing ran here, and the state is kept for the pod that is made again.
    Kept,
}

/// The source's word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceWord {
    /// It has begun (its journal exists).
    #[serde(default)]
    pub begun: bool,
    /// Its vote is journalled.
    #[serde(default)]
    pub voted: bool,
    /// Its tasks were gone when the outcome came (reboot, its shim has died): it starts fresh, its memory is lost.
    #[serde(default)]
    pub memory_lost: bool,
    /// Nothing is left to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<SourceOutcome>,
}

/// The target's word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetWord {
    /// It has begun (its journal exists).
    #[serde(default)]
    pub begun: bool,
    /// Its vote is journalled.
    #[serde(default)]
    pub voted: bool,
    /// It ran, or may have run and can go on: the operator may record `resumedAt`.
    #[serde(default)]
    pub thawed: bool,
    /// It may have run and its tasks are gone (reboot): the operator should record a resolution.
    /// Not final: `resumedAt` may have been recorded already, and then it starts fresh.
    #[serde(default)]
    pub lost: bool,
    /// The final outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<TargetOutcome>,
    /// Nothing is left to do.
    #[serde(default)]
    pub closed: bool,
}

/// What quorum reads say of a node, made by [`judge_node`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeSeen<T> {
    /// It has published this.
    Tells(T),
    /// It has published nothing, but the cluster has it: it registers anew, and what it says is still to come.
    Anew,
    /// The cluster has no such node any more.
    Left,
}

/// Judges successful quorum reads, in this order: of what the node has `published` (our Node), and, where that is not
/// there, of whether the cluster's own object of the node is. Ours alone proves nothing: it is made again by a node that
/// lives.
pub fn judge_node<T>(published: Option<T>, is_in_cluster: bool) -> NodeSeen<T> {
    match published {
        Some(published) => NodeSeen::Tells(published),
        None if is_in_cluster && holds(Rule::AnewIsNotGone) => NodeSeen::Anew,
        None => NodeSeen::Left,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_left_only_when_the_cluster_has_none_of_its_name() {
        assert_eq!(judge_node(Some("word"), true), NodeSeen::Tells("word"));
        assert_eq!(judge_node(Some("word"), false), NodeSeen::Tells("word"), "ours goes later");
        assert_eq!(judge_node::<&str>(None, true), NodeSeen::Anew);
        assert_eq!(judge_node::<&str>(None, false), NodeSeen::Left);
    }
}
