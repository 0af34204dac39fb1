//! The sign of life of a target that may run unconfirmed, and what its absence proves.
//!
//! From before its vote until it is closed a target's holder signs its node's Lease with the UID
//! of its Migration, every [`RENEWAL`]. Its dead-man counts from the moment at which the last good
//! signature was *sent*, and stops the target when that is older than [`PATIENCE`]. So when the
//! API server has seen no signature for the longer time [`PROOF`], the target has stopped, whoever
//! of its node still lives. One that has closed takes its signature off, unless a Commit may stand
//! open to which it has denied itself: then the last one stays, and does not change any more.

use std::time::{Duration, Instant};

use crate::operator::TargetProof;

/// Pause between two signatures.
pub const RENEWAL: Duration = Duration::from_secs(2);
/// T₁: how old the last good signature of a target may be that runs unconfirmed.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// T₂: for how long no signature must have been seen. What it has beyond [`PATIENCE`] is for the
/// pace at which the dead-man looks, the start of another one, the freeze, and clocks that drift.
pub const PROOF: Duration = Duration::from_secs(30);

/// What an operator has seen of a target's signatures, by its own clock (clocks need not agree).
/// To be asked only while a Commit stands open: a silence from before the vote, when no dead-man
/// counted, would be no proof.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signatures {
    /// The newest one, and when the read that showed it first had been answered.
    seen: Option<(String, Instant)>,
}

impl Signatures {
    /// Takes the result of a quorum read, sent at `asked` and answered at `answered`. A target
    /// that has never signed, or has signed off, proves nothing by its silence.
    pub fn look(
        &mut self,
        signature: Option<&str>,
        asked: Instant,
        answered: Instant,
    ) -> TargetProof {
        match (signature, &self.seen) {
            (None, _) => self.seen = None,
            (Some(now), Some((seen, since))) if now == seen => {
                if asked.saturating_duration_since(*since) >= PROOF {
                    return TargetProof::NodeDead;
                }
            }
            (Some(now), _) => self.seen = Some((now.to_owned(), answered)),
        }
        TargetProof::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_signature_that_stays_the_same_for_long_is_a_proof() {
        let begun = Instant::now();
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        let mut signatures = Signatures::default();
        let steps = [
            (Some("a"), 0, 1, TargetProof::None),
            // Counted from the answer of the first to the sending of the last.
            (Some("a"), 30, 30, TargetProof::None),
            (Some("a"), 31, 40, TargetProof::NodeDead),
            (Some("b"), 40, 40, TargetProof::None),
            (Some("b"), 69, 80, TargetProof::None),
            (None, 90, 90, TargetProof::None),
            (Some("b"), 91, 91, TargetProof::None),
            (None, 300, 300, TargetProof::None),
        ];
        for (signature, asked, answered, wanted) in steps {
            let proof = signatures.look(signature, at(asked), at(answered));
            assert_eq!(proof, wanted, "{signature:?} at {asked}");
        }
    }

    #[test]
    fn several_signatures_may_be_lost_before_a_target_stops_and_it_stops_before_that_is_a_proof() {
        assert!(PATIENCE >= RENEWAL * 5);
        assert!(PROOF >= PATIENCE + Duration::from_secs(10));
    }
}
