//! Containers on this host.
