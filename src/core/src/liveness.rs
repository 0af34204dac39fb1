//! Whether a node lives, as Docker Swarm judges an engine: failures in a row are counted, at
//! [`FAILURE_RETRY`] it is unhealthy, and before that its health falls with each.
//!
//! Swarm calls its engines and counts the calls that fail; here the agents call, so a failure is a
//! third of the time to live in which nothing was heard.

use std::time::Duration;

use crate::placement;

/// Failures in a row at which a node is unhealthy: Swarm's `--engine-failure-retry`.
pub const FAILURE_RETRY: i32 = 3;

/// Failures in a row of a node that has been silent for so long. `ttl`: the silence at which it
/// counts as unhealthy.
pub fn failures(silent: Duration, ttl: Duration) -> i32 {
    let retry = FAILURE_RETRY.unsigned_abs();
    (1..=FAILURE_RETRY).filter(|n| silent * retry >= ttl * n.unsigned_abs()).count() as i32
}

/// 0 (takes no pods) to 100. `healthy`: the node is Ready.
pub fn health_indicator(healthy: bool, failures: i32) -> i32 {
    placement::health_indicator(healthy, failures.into(), FAILURE_RETRY.into()) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_third_of_the_time_to_live_is_a_failure() {
        let ttl = Duration::from_secs(40);
        for (seconds, expected) in
            [(0.0, 0), (13.3, 0), (13.4, 1), (26.6, 1), (26.7, 2), (39.9, 2), (40.0, 3), (4e6, 3)]
        {
            assert_eq!(failures(Duration::from_secs_f64(seconds), ttl), expected, "{seconds}");
        }
    }

    #[test]
    fn health_falls_with_the_failures_in_whole_numbers() {
        assert_eq!([0, 1, 2, 3, 9].map(|f| health_indicator(true, f)), [100, 67, 34, 0, 0]);
        assert_eq!(health_indicator(false, 0), 0);
    }
}
