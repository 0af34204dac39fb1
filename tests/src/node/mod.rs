//! What a test does inside a node, where a shell would be too slow: see a moment of a migration, kill
//! a process in it, and look at which copies of the application run.

pub mod copies;
pub mod moment;
pub mod process;
pub mod side;
