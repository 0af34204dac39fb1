//! What kube-scheduler and an extender say to each other (`k8s.io/kube-scheduler/extender/v1`), as
//! far as an extender with `nodeCacheCapable` is concerned: nodes are named, not described.
//!
//! Names of nodes are borrowed from the request: there may be thousands. They hold nothing that JSON
//! would escape.

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize, Serializer};

/// The score of the node that a pod is to go to.
pub const BEST: i64 = 10;

/// The question of `filter` and of `prioritize`.
#[derive(Debug, Deserialize)]
pub struct Args<'a> {
    /// The pod that is to be placed.
    #[serde(rename = "Pod")]
    pub pod: Pod,
    /// The nodes that are left by all filters so far.
    #[serde(rename = "NodeNames", borrow)]
    pub node_names: Vec<&'a str>,
}

/// The answer of `filter`.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Filtered<'a> {
    /// Nodes that the pod can go to.
    #[serde(rename = "NodeNames")]
    pub node_names: Vec<&'a str>,
    /// Nodes that it cannot go to, and why; another pod's end could help.
    #[serde(rename = "FailedNodes")]
    pub failed: Reasons<'a>,
    /// Nodes that it cannot go to, and why, whatever becomes of other pods.
    #[serde(rename = "FailedAndUnresolvableNodes")]
    pub unresolvable: Reasons<'a>,
}

/// Reasons by node, each node once: an object on the wire.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reasons<'a>(pub Vec<(&'a str, &'a str)>);

impl Serialize for Reasons<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

/// One entry of `prioritize`'s answer.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Score<'a> {
    /// A node.
    #[serde(rename = "Host")]
    pub host: &'a str,
    /// 0 to [`BEST`].
    #[serde(rename = "Score")]
    pub score: i64,
}

/// Reads a question; an error says what is wrong with it.
pub fn parse(body: &[u8]) -> Result<Args<'_>, String> {
    let args: Args<'_> = serde_json::from_slice(body)
        .map_err(|error| format!("this is no ExtenderArgs with NodeNames: {error}"))?;
    if args.pod.metadata.uid.as_deref().unwrap_or_default().is_empty() {
        return Err("the pod in ExtenderArgs has no UID".to_owned());
    }
    Ok(args)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_question_of_kube_scheduler_is_read() {
        let body = br#"{"Pod":{"metadata":{"name":"p","uid":"u"},"spec":{"containers":[]}},
            "Nodes":null,"NodeNames":["node-a","node-b"]}"#;
        let args = parse(body).unwrap();
        assert_eq!(args.node_names, ["node-a", "node-b"]);
        assert_eq!(args.pod.metadata.name.as_deref(), Some("p"));
    }

    #[rstest]
    #[case("", "EOF")]
    #[case("[]", "ExtenderArgs")]
    #[case("{}", "Pod")]
    #[case(r#"{"Pod":{"metadata":{"uid":"u"}}}"#, "NodeNames")]
    #[case(r#"{"Pod":{"metadata":{"uid":"u"}},"NodeNames":null}"#, "null")]
    #[case(r#"{"Pod":{"metadata":{"uid":"u"}},"NodeNames":[1]}"#, "integer")]
    #[case(r#"{"Pod":{"metadata":{"uid":7}},"NodeNames":[]}"#, "integer")]
    #[case(r#"{"Pod":{"metadata":{"name":"p"}},"NodeNames":[]}"#, "no UID")]
    fn anything_else_is_answered_with_what_is_wrong(#[case] body: &str, #[case] word: &str) {
        let error = parse(body.as_bytes()).unwrap_err();
        assert!(error.contains(word), "{error}");
    }

    #[test]
    fn answers_are_spelled_as_kube_scheduler_reads_them() {
        let filtered = Filtered {
            node_names: vec!["node-a"],
            failed: Reasons(vec![("node-b", "full")]),
            unresolvable: Reasons::default(),
        };
        assert_eq!(
            serde_json::to_value(filtered).unwrap(),
            json!({"NodeNames": ["node-a"], "FailedNodes": {"node-b": "full"},
                "FailedAndUnresolvableNodes": {}})
        );
        let scores = [Score { host: "node-a", score: BEST }];
        assert_eq!(serde_json::to_value(scores).unwrap(), json!([{"Host": "node-a", "Score": 10}]));
    }
}
