//! Regular expressions as Go reads them, written for the `regex` crate.
//!
//! Swarm compiled users' patterns with Go's `regexp`. Both descend from RE2 and agree on what is
//! left after this translation; they differ in classes such as `\d` (ASCII in Go), in brackets (no
//! nested classes and no set operations in Go), in flags, in `\Q…\E` and octal escapes, and in what
//! is an error: Go refuses `a**`. A pattern that Go refuses matches nothing.

use std::fmt::Write;
use std::iter::Peekable;
use std::str::Chars;

const POSIX: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct",
    "space", "upper", "word", "xdigit",
];

/// The same pattern for the `regex` crate; none if Go refuses it. What only the crate can refuse
/// (parentheses without partner) is left to it.
pub(super) fn from_go(pattern: &str) -> Option<String> {
    let mut scanner = Scanner { rest: pattern.chars().peekable(), out: String::new() };
    scanner.pattern()?;
    Some(scanner.out)
}

struct Scanner<'a> {
    rest: Peekable<Chars<'a>>,
    out: String,
}

impl Scanner<'_> {
    fn pattern(&mut self) -> Option<()> {
        // Whether a repetition may follow: there is something to repeat, and it is no repetition.
        let mut repeatable = false;
        while let Some(c) = self.rest.next() {
            match c {
                '*' | '+' | '?' => {
                    if !repeatable {
                        return None;
                    }
                    self.out.push(c);
                    if self.rest.next_if_eq(&'?').is_some() {
                        self.out.push('?');
                    }
                    repeatable = false;
                    if self.rest.peek().is_some_and(|c| "*+?".contains(*c)) {
                        return None;
                    }
                }
                '(' => repeatable = self.open(repeatable)?,
                '|' => {
                    self.out.push(c);
                    repeatable = false;
                }
                '[' => {
                    self.class()?;
                    repeatable = true;
                }
                '\\' => repeatable |= self.escape()?,
                '.' | '^' | '$' | ')' => {
                    self.out.push(c);
                    repeatable = true;
                }
                c => {
                    self.literal(c);
                    repeatable = true;
                }
            }
        }
        Some(())
    }

    /// Behind `(`. Gives whether a repetition may follow, which stood at `before`.
    fn open(&mut self, before: bool) -> Option<bool> {
        if self.rest.next_if_eq(&'?').is_none() {
            self.out.push('(');
            return Some(false);
        }
        let (mut on, mut off) = (String::new(), String::new());
        let mut negative = false;
        loop {
            match self.rest.next()? {
                flag @ ('i' | 'm' | 's' | 'U') => {
                    let (to, from) =
                        if negative { (&mut off, &mut on) } else { (&mut on, &mut off) };
                    from.retain(|c| c != flag);
                    if !to.contains(flag) {
                        to.push(flag);
                    }
                }
                '-' if !negative => negative = true,
                end @ (':' | ')') => {
                    if negative && off.is_empty() {
                        return None;
                    }
                    let minus = if off.is_empty() { "" } else { "-" };
                    return match end {
                        ':' => write!(self.out, "(?{on}{minus}{off}:").ok().map(|()| false),
                        _ if on.is_empty() && off.is_empty() => Some(before),
                        _ => write!(self.out, "(?{on}{minus}{off})").ok().map(|()| before),
                    };
                }
                _ => return None,
            }
        }
    }

    /// Behind a backslash outside brackets. Gives whether something was written.
    fn escape(&mut self) -> Option<bool> {
        match *self.rest.peek()? {
            'A' => self.out.push_str(r"\A"),
            'z' => self.out.push_str(r"\z"),
            'b' => self.out.push_str(r"(?-u:\b)"),
            'B' => self.out.push_str(r"(?-u:\B)"),
            'Q' => {
                self.rest.next();
                return Some(self.quoted());
            }
            class @ ('d' | 'D' | 's' | 'S' | 'w' | 'W') => self.out.push_str(perl_class(class)),
            'p' | 'P' => return self.unicode_class().map(|()| true),
            _ => {
                let c = self.escaped()?;
                self.literal(c);
                return Some(true);
            }
        }
        self.rest.next();
        Some(true)
    }

    /// Everything up to `\E` or the end, as it stands.
    fn quoted(&mut self) -> bool {
        let mut any = false;
        while let Some(c) = self.rest.next() {
            if c == '\\' && self.rest.next_if_eq(&'E').is_some() {
                break;
            }
            self.literal(c);
            any = true;
        }
        any
    }

    /// `pL`, the backslash being read.
    fn unicode_class(&mut self) -> Option<()> {
        let sign = self.rest.next()?;
        let group = self.rest.next().filter(char::is_ascii_uppercase)?;
        write!(self.out, r"\{sign}{group}").ok()
    }

    /// Behind `[`.
    fn class(&mut self) -> Option<()> {
        self.out.push('[');
        if self.rest.next_if_eq(&'^').is_some() {
            self.out.push('^');
        }
        let mut first = true;
        loop {
            if self.rest.peek() == Some(&']') && !first {
                self.rest.next();
                self.out.push(']');
                return Some(());
            }
            first = false;
            if self.posix_class()? {
                continue;
            }
            if self.rest.next_if_eq(&'\\').is_some() {
                match *self.rest.peek()? {
                    class @ ('d' | 'D' | 's' | 'S' | 'w' | 'W') => {
                        self.rest.next();
                        self.out.push_str(perl_class(class));
                        continue;
                    }
                    'p' | 'P' => {
                        self.unicode_class()?;
                        continue;
                    }
                    _ => {}
                }
                let from = self.escaped()?;
                self.range(from)?;
            } else {
                let from = self.rest.next()?;
                self.range(from)?;
            }
        }
    }

    /// `[:alpha:]` within brackets; false if there is none.
    fn posix_class(&mut self) -> Option<bool> {
        let ahead: String = self.rest.clone().collect();
        let Some((name, _)) = ahead.strip_prefix("[:").and_then(|rest| rest.split_once(":]"))
        else {
            return Some(false);
        };
        let plain = name.strip_prefix('^').unwrap_or(name);
        if !POSIX.contains(&plain) {
            return None;
        }
        write!(self.out, "[:{name}:]").ok()?;
        self.rest.nth(name.len() + 3);
        Some(true)
    }

    /// A character within brackets, with the end of a range if there is one.
    fn range(&mut self, from: char) -> Option<()> {
        self.literal(from);
        let mut ahead = self.rest.clone();
        if ahead.next() != Some('-') || ahead.next().is_none_or(|c| c == ']') {
            return Some(());
        }
        self.rest.next();
        let to = match self.rest.next()? {
            '\\' => self.escaped()?,
            c => c,
        };
        if to < from {
            return None;
        }
        self.out.push('-');
        self.literal(to);
        Some(())
    }

    /// The character that an escape stands for, the backslash being read.
    fn escaped(&mut self) -> Option<char> {
        let c = self.rest.next()?;
        let octal = |c: &char| ('0'..='7').contains(c);
        let code = match c {
            'a' => 7,
            'f' => 12,
            't' => 9,
            'n' => 10,
            'r' => 13,
            'v' => 11,
            // A single digit would refer back to a group, which there is not.
            '1'..='7' if !self.rest.peek().is_some_and(octal) => return None,
            '0'..='7' => {
                let mut code = c.to_digit(8)?;
                for _ in 0..2 {
                    let Some(digit) = self.rest.next_if(octal) else { break };
                    code = code * 8 + digit.to_digit(8)?;
                }
                code
            }
            'x' => self.rest.next()?.to_digit(16)? * 16 + self.rest.next()?.to_digit(16)?,
            c if c.is_ascii() && !c.is_ascii_alphanumeric() => return Some(c),
            _ => return None,
        };
        char::from_u32(code)
    }

    fn literal(&mut self, c: char) {
        if c.is_ascii_alphanumeric() {
            self.out.push(c);
        } else {
            // Writing to a String does not fail.
            let _ = write!(self.out, r"\x{{{:X}}}", u32::from(c));
        }
    }
}

fn perl_class(letter: char) -> &'static str {
    match letter {
        'd' => "[0-9]",
        'D' => "[^0-9]",
        's' => r"[\t\n\f\r ]",
        'S' => r"[^\t\n\f\r ]",
        'w' => "[0-9A-Za-z_]",
        _ => "[^0-9A-Za-z_]",
    }
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    use super::from_go;

    /// Whether Go accepts the pattern, and whether it then matches the text.
    fn matches(pattern: &str, text: &str) -> Option<bool> {
        Some(Regex::new(&from_go(pattern)?).ok()?.is_match(text))
    }

    #[test]
    fn patterns_match_as_in_go() {
        for (pattern, text, wanted) in [
            ("", "x", Some(true)),
            ("us-(east|west)", "us-west-2", Some(true)),
            ("(?i)US", "us", Some(true)),
            ("(?ii)US", "us", Some(true)),
            ("(?i-i)US", "us", Some(false)),
            ("(?i:U)S", "uS", Some(true)),
            ("(?)a", "a", Some(true)),
            ("(?-)a", "a", None),
            ("(?x)a", "a", None),
            ("(?u)a", "a", None),
            ("[", "[", None),
            ("(", "(", None),
            (")", ")", None),
            ("a**", "a", None),
            ("a*?", "a", Some(true)),
            ("a*??", "a", None),
            ("*a", "a", None),
            ("(*a)", "a", None),
            ("a|*", "a", None),
            ("^*a", "a", Some(true)),
            ("[[]", "[", Some(true)),
            ("[]a]", "]", Some(true)),
            ("[]", "]", None),
            ("[^]a]", "]", Some(false)),
            ("[+--]", ",", Some(true)),
            ("[a-]", "-", Some(true)),
            ("[b-a]", "a", None),
            (r"[a-\d]", "a", None),
            (r"[\d.]", "٣", Some(false)),
            (r"[\d.]", ".", Some(true)),
            ("[[:alpha:]-]", "-", Some(true)),
            ("[[:alpa:]]", "a", None),
            ("[[:^digit:]]", "1", Some(false)),
            ("[[:x]", ":", Some(true)),
            (r"\d", "٣", Some(false)),
            (r"^\s$", "\u{b}", Some(false)),
            (r"\bus\b", "x us", Some(true)),
            (r"\Q.*\E.", ".*x", Some(true)),
            (r"\Q.*", "ab", Some(false)),
            (r"\E", "E", None),
            (r"\1", "1", None),
            (r"\101", "A", Some(true)),
            (r"\x41", "A", Some(true)),
            (r"\_\:\/", "_:/", Some(true)),
            (r"\y", "y", None),
            (r"\C", "C", None),
            (r"\Z", "Z", None),
            ("\\", "\\", None),
            (r"\pL", "é", Some(true)),
            (r"[\PL]", "é", Some(false)),
            ("a$", "a\n", Some(false)),
            ("a.b", "a\nb", Some(false)),
        ] {
            assert_eq!(matches(pattern, text), wanted, "{pattern:?} on {text:?}");
        }
    }
}
