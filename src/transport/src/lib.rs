//! The node-to-node stream.
