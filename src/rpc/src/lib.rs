//! gRPC between operator, agent and holder: what `proto/transship.proto` says, as Rust types.
//!
//! Nothing here decides anything: calls are idempotent requests and hints, decisions are read
//! from the API server.
#![allow(missing_docs, reason = "generated code; the .proto file has the comments")]

tonic::include_proto!("transship.v1alpha1");

impl Role {
    /// `source` or `target`, as in paths and journals.
    pub fn as_path(self) -> &'static str {
        match self {
            Role::Source => "source",
            Role::Target => "target",
            Role::Unspecified => "unspecified",
        }
    }
}
