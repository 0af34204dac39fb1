//! What the API server asks before it stores an object.

mod handover;
mod movable;
mod placement;

pub use handover::{Handover, handover};
pub use movable::{Movable, movable};
pub use placement::review as placement;
