//! The overlapping order: the target is restored beside the source.

mod actors;
mod faults;
mod host;
mod operators;
mod role;
mod runs;
mod space;
mod world;
