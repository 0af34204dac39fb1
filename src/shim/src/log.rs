//! Errors for containerd: they go to the log file that its shim named, in runc's format, from where the shim
//! takes its error message. Never to the standard streams, which belong to the container.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use transship_host::invocation::Invocation;

/// Writes one error. Without a log file (a person at a terminal) it goes to standard error, as runc's would.
pub fn error(invocation: &Invocation, message: &str) {
    let line = line(invocation.log_json, message, now());
    let written = invocation.log.as_ref().is_some_and(|path| {
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).is_ok()
    });
    if !written && invocation.log.is_none() {
        let _ = std::io::stderr().write_all(format!("transship-runc: {message}\n").as_bytes());
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn line(json: bool, message: &str, at: u64) -> String {
    let message = format!("transship: {message}");
    // A JSON string is a valid quoted value of the text format, too.
    let quoted = serde_json::to_string(&message).unwrap_or_else(|_| "\"transship\"".into());
    let time = rfc3339(at);
    if json {
        format!("{{\"level\":\"error\",\"msg\":{quoted},\"time\":\"{time}\"}}\n")
    } else {
        format!("time=\"{time}\" level=error msg={quoted}\n")
    }
}

/// Seconds since 1970 as `2026-11-21T06:30:00Z`.
fn rfc3339(at: u64) -> String {
    let (days, second) = (at / 86_400, at % 86_400);
    // Days since 0000-03-01, in 400-year eras, so that the leap day is the last of a year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (at, text) in cases {
            assert_eq!(rfc3339(at), text);
        }
    }

    #[test]
    fn a_line_has_runcs_format_whatever_the_message_holds() {
        let text = line(true, "no \"web\"\nnow", 0);
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(parsed["level"], "error");
        assert_eq!(parsed["msg"], "transship: no \"web\"\nnow");
        assert_eq!(parsed["time"], "1970-01-01T00:00:00Z");
        assert_eq!(
            line(false, "x", 0),
            "time=\"1970-01-01T00:00:00Z\" level=error msg=\"transship: x\"\n"
        );
    }
}
