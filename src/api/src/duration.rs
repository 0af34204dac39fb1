//! Durations as Kubernetes people write them: Go's format, `300ms`, `1m30s`, `720h`.
//!
//! Reading accepts every unit of Go and fractions (`1.5s`); it refuses negative values, since no
//! field of ours can mean one. Writing gives what Go's `Duration.String` gives, rounded to
//! microseconds, so that `kubectl` columns look like those of other kinds.

use std::time::Duration;

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseDurationError {
    /// The text does not have the form number-unit, repeated.
    #[error("write a duration as a number and a unit, such as 300ms, 10m or 1m30s, not {0:?}")]
    Malformed(String),
    /// The text is a duration that no field of ours can hold (more than about 584 years).
    #[error("the duration {0:?} is too long")]
    TooLong(String),
}

/// Units, longest suffix first so that `ms` is not read as `m` followed by `s`.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads a Go duration. `0` needs no unit, as in Go.
pub fn parse(text: &str) -> Result<Duration, ParseDurationError> {
    let malformed = || ParseDurationError::Malformed(text.to_owned());
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.is_empty() {
        return Err(malformed());
    }
    let mut rest = text;
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let (whole, after) = split_digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => split_digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(malformed());
        }
        let (unit, nanos_per_unit) =
            UNITS.into_iter().find(|(unit, _)| after.starts_with(unit)).ok_or_else(malformed)?;
        nanos = part_nanos(whole, fraction, nanos_per_unit)
            .and_then(|part| nanos.checked_add(part))
            .ok_or_else(|| ParseDurationError::TooLong(text.to_owned()))?;
        rest = &after[unit.len()..];
    }
    u64::try_from(nanos)
        .map(Duration::from_nanos)
        .map_err(|_| ParseDurationError::TooLong(text.to_owned()))
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// `whole.fraction` units in nanoseconds; digits beyond a nanosecond are cut off.
fn part_nanos(whole: &str, fraction: &str, nanos_per_unit: u64) -> Option<u128> {
    let unit = u128::from(nanos_per_unit);
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut nanos = whole.checked_mul(unit)?;
    let mut scale = unit;
    for digit in fraction.bytes() {
        // Each further digit counts a tenth of the one before it. Rounding down per digit loses
        // at most a few nanoseconds with units that are not powers of ten.
        scale /= 10;
        nanos = nanos.checked_add(scale.checked_mul(u128::from(digit - b'0'))?)?;
    }
    Some(nanos)
}

/// Writes a duration as Go does, rounded to microseconds: `184.213ms`, `1.5s`, `1m30s`, `10m0s`.
pub fn format(duration: Duration) -> String {
    let micros = (duration.as_nanos() + 500) / 1_000;
    if micros == 0 {
        return "0s".to_owned();
    }
    if micros < 1_000 {
        return format!("{micros}µs");
    }
    if micros < 1_000_000 {
        return format!("{}ms", decimal(micros, 3));
    }
    let (hours, rest) = (micros / 3_600_000_000, micros % 3_600_000_000);
    let (minutes, rest) = (rest / 60_000_000, rest % 60_000_000);
    let seconds = decimal(rest, 6);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// `value / 10^digits` without trailing zeros.
fn decimal(value: u128, digits: usize) -> String {
    let scale = 10u128.pow(digits as u32);
    let (whole, fraction) = (value / scale, value % scale);
    if fraction == 0 {
        return whole.to_string();
    }
    let fraction = format!("{fraction:0digits$}");
    format!("{whole}.{}", fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, nanos) in [
            ("0", 0),
            ("300ms", 300_000_000),
            ("10m", 600_000_000_000),
            ("1m30s", 90_000_000_000),
            ("720h", 2_592_000_000_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("1h0.25m", 3_615_000_000_000),
            ("20us", 20_000),
            ("20µs", 20_000),
            ("7ns", 7),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_duration_is_refused_with_an_example() {
        for text in ["", "10", "ms", "10 m", "-5s", "5d", "1m30", "s5", "1..5s", "+1s", "."] {
            let error = parse(text).unwrap_err();
            assert!(matches!(error, ParseDurationError::Malformed(_)), "{text}");
            assert!(error.to_string().contains("300ms"), "{error}");
        }
        for text in ["99999999999h", "340282366920938463463374607431768211456s"] {
            assert!(matches!(parse(text), Err(ParseDurationError::TooLong(_))), "{text}");
        }
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (micros, text) in [
            (0, "0s"),
            (250, "250µs"),
            (184_213, "184.213ms"),
            (15_000, "15ms"),
            (1_500_000, "1.5s"),
            (90_000_000, "1m30s"),
            (600_000_000, "10m0s"),
            (3_600_000_000, "1h0m0s"),
        ] {
            assert_eq!(format(Duration::from_micros(micros)), text);
        }
        assert_eq!(format(Duration::from_nanos(999_999_600)), "1s");
    }

    #[test]
    fn what_is_written_is_read_back_unchanged() {
        for micros in [0, 1, 999, 1_000, 999_999, 1_000_001, 61_000_500, 86_400_000_001] {
            let duration = Duration::from_micros(micros);
            assert_eq!(parse(&format(duration)), Ok(duration));
        }
    }
}
