//! What the API server asks before it stores an object.

mod handover;
mod placement;

pub use handover::{Handover, handover};
pub use placement::review as placement;
