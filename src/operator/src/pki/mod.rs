//! The authority of Transship's certificates: made and rotated by the leader ([`ca`]), used by
//! every replica to serve ([`serving`]) and to sign for agents ([`issue`]).
//!
//! The authority lives in the Secret `transship-ca`; its certificates, old and new ones while they
//! overlap, are published in the ConfigMap `transship-ca-bundle` and in the webhooks' caBundle.

pub mod ca;
pub mod issue;
pub mod keeper;
pub mod serving;

/// DNS name in the operator's client certificate; agents let only this name call them.
pub const OPERATOR_NAME: &str = "operator.transship.internal";

/// DNS name in the certificate of a node's agent.
pub fn node_name(node: &str) -> String {
    format!("{node}.node.transship.internal")
}
