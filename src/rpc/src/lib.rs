//! gRPC between operator, agent and holder.
