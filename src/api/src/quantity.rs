//! Amounts of bytes as Kubernetes quantities: `200Mi`, `1Gi`, `1.5G`.

/// Why a text is not an amount of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseQuantityError {
    /// The text does not have the form number-suffix.
    #[error("write an amount of bytes as a number and a suffix, such as 200Mi or 1Gi, not {0:?}")]
    Malformed(String),
    /// The amount does not fit 64 bits.
    #[error("the amount of bytes {0:?} is too large")]
    TooLarge(String),
}

/// Suffixes with their factors, two-letter ones first so that `Ki` is not read as `K…`.
const SUFFIXES: [(&str, u64); 13] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("Ei", 1 << 60),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000),
    ("", 1),
];

/// Reads an amount of bytes. A fraction of a byte is cut off.
pub fn parse_bytes(text: &str) -> Result<u64, ParseQuantityError> {
    let malformed = || ParseQuantityError::Malformed(text.to_owned());
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let factor =
        SUFFIXES.into_iter().find(|(s, _)| *s == suffix).map(|(_, f)| f).ok_or_else(malformed)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') {
        return Err(malformed());
    }
    let too_large = || ParseQuantityError::TooLarge(text.to_owned());
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let mut bytes = u128::from(whole) * u128::from(factor);
    let mut scale = u128::from(factor) * 1_000_000_000;
    let mut part = 0;
    for digit in fraction.bytes().take(18) {
        scale /= 10;
        part += scale * u128::from(digit - b'0');
    }
    bytes += part / 1_000_000_000;
    u64::try_from(bytes).map_err(|_| too_large())
}

/// Writes an amount for people, rounded to three significant figures: `268 MiB`, `1.21 GiB`.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = match (unit, value) {
        (0, _) => 0,
        (_, v) if v < 9.995 => 2,
        (_, v) if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_kubernetes_reads_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1000", 1000),
            ("200Mi", 200 << 20),
            ("1Gi", 1 << 30),
            ("1.5Ki", 1536),
            ("1.5G", 1_500_000_000),
            ("2k", 2000),
            ("1.", 1),
            ("0.0001Ki", 0),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_not_an_amount_is_refused_with_an_example() {
        for text in ["", "Mi", "10MB", "10 Mi", "-1", "1.2.3", "1e3", "10m", ".5Gi", "10K"] {
            let error = parse_bytes(text).unwrap_err();
            assert!(matches!(error, ParseQuantityError::Malformed(_)), "{text}");
            assert!(error.to_string().contains("200Mi"), "{error}");
        }
        for text in ["16Ei", "99999999999999999999999", "18446744073709551616"] {
            assert!(matches!(parse_bytes(text), Err(ParseQuantityError::TooLarge(_))), "{text}");
        }
    }

    #[test]
    fn amounts_are_shown_to_people_with_three_figures() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (281_018_368, "268 MiB"),
            (1_300_000_000, "1.21 GiB"),
            (1_048_575, "1.00 MiB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
