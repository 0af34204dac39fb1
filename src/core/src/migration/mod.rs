//! A migration's course: what was observed ([`state`]), what is to be done next ([`fn@plan`]), who is
//! admitted ([`admission`]), and how labels and ownership go from one pod to the other
//! ([`handover`], [`owner`]). All of it pure: the clock is an argument.

pub mod admission;
pub mod events;
pub mod handover;
pub mod owner;
pub mod patch;
pub mod plan;
pub mod rollback;
pub mod sequential;
pub mod state;
mod status;
pub mod takeover;
pub mod vanished;
pub mod voting;

pub use plan::{Action, Plan, plan};
pub use state::{Observed, Report, Role, Side, Stage};

#[cfg(test)]
mod plan_tests;
#[cfg(test)]
mod testing;
