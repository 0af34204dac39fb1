//! The commit protocol as pure transitions.
