//! The bandwidth limit: a token bucket. It reads no clock and never sleeps.

use std::time::Duration;

/// Lets `rate` bytes a second through, after a burst of at most a tenth of a second.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    rate: f64,
    burst: f64,
    /// Bytes that may pass now; negative while a debt is being waited off.
    tokens: f64,
    last: Duration,
}

impl TokenBucket {
    /// A full bucket for `rate` bytes a second; `None` for 0, which means no limit.
    pub fn new(rate: u64) -> Option<Self> {
        let rate = rate as f64;
        let burst = rate / 10.0;
        (rate > 0.0).then_some(Self { rate, burst, tokens: burst, last: Duration::ZERO })
    }

    /// Takes `bytes` at the time `now` (since any fixed moment) and says how long to wait before
    /// sending them.
    pub fn take(&mut self, bytes: usize, now: Duration) -> Duration {
        let passed = now.saturating_sub(self.last);
        self.last = self.last.max(now);
        self.tokens = (self.tokens + passed.as_secs_f64() * self.rate).min(self.burst);
        self.tokens -= bytes as f64;
        if self.tokens >= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(-self.tokens / self.rate).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_holds_over_time_whatever_the_size_of_the_pieces() {
        for piece in [100, 5_000, 100_000] {
            let mut bucket = TokenBucket::new(1_000_000).unwrap();
            let (mut now, mut sent) = (Duration::ZERO, 0);
            while sent < 3_000_000 {
                now += bucket.take(piece, now);
                sent += piece;
            }
            let seconds = now.as_secs_f64();
            assert!((2.8..=3.0).contains(&seconds), "{piece}: {seconds} s");
        }
    }

    #[test]
    fn an_idle_link_saves_up_no_more_than_the_burst() {
        let mut bucket = TokenBucket::new(1000).unwrap();
        assert_eq!(bucket.take(0, Duration::from_secs(3600)), Duration::ZERO);
        assert_eq!(bucket.take(100, Duration::from_secs(3600)), Duration::ZERO);
        assert_eq!(bucket.take(1000, Duration::from_secs(3600)), Duration::from_secs(1));
    }

    #[test]
    fn zero_means_no_limit() {
        assert!(TokenBucket::new(0).is_none());
    }
}
