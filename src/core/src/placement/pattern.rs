//! What the value of an expression matches.

use regex::Regex;

use super::dialect;
use super::words;

/// A compiled value: `/…/` is a regular expression that may match anywhere, anything else a glob
/// that matches all of the text. As in Swarm, a glob is a regular expression too, with `*` for any
/// characters: `.` matches any character, and brackets and bars keep their meaning.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    /// The only text that matches, where that is plain.
    literal: Option<String>,
    /// None if the expression is malformed; then nothing matches.
    regex: Option<Regex>,
    /// Finds a match among words in one go.
    words: Option<Regex>,
}

impl Pattern {
    /// Compiles the value of an expression, which is not empty.
    pub(super) fn new(value: &str) -> Self {
        // A slash alone is no regular expression: it cannot be both the first and the last.
        let inner = value.strip_prefix('/').and_then(|rest| rest.strip_suffix('/'));
        let Some(inner) = inner else { return Self::glob(value) };
        Self { literal: None, regex: compile(inner), words: None }
    }

    fn glob(value: &str) -> Self {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_:/- ".contains(c);
        if value.chars().all(plain) {
            let words = Regex::new(&format!("\n{}\n", regex::escape(value))).ok();
            return Self { literal: Some(value.to_owned()), regex: None, words };
        }
        let regex = compile(&format!("^{}$", value.replace('*', ".*")));
        let words = value.chars().all(|c| plain(c) || c == '*' || c == '.').then(|| {
            let any = regex::escape(value).replace(r"\*", "[^\n]*").replace(r"\.", "[^\n]");
            Regex::new(&format!("\n{any}\n")).ok()
        });
        Self { literal: None, regex, words: words.flatten() }
    }

    /// Whether it is well-formed. If not nothing matches, as in Swarm.
    pub(super) fn is_well_formed(&self) -> bool {
        self.literal.is_some() || self.regex.is_some()
    }

    /// Whether a text matches.
    pub(super) fn matches(&self, text: &str) -> bool {
        match &self.literal {
            Some(literal) => literal == text,
            None => self.regex.as_ref().is_some_and(|regex| regex.is_match(text)),
        }
    }

    /// Whether any of the words matches, given as [`words::Words::text`].
    pub(super) fn matches_any(&self, text: &str) -> bool {
        match &self.words {
            Some(regex) => regex.is_match(text),
            None => words::split(text).any(|word| self.matches(word)),
        }
    }
}

fn compile(pattern: &str) -> Option<Regex> {
    Regex::new(&dialect::from_go(pattern)?).ok()
}

#[cfg(test)]
mod tests {
    use super::words::Words;
    use super::*;

    #[test]
    fn globs_match_all_of_a_text_and_regular_expressions_any_part() {
        for (value, text, wanted) in [
            ("us*", "us-east", true),
            ("us", "us-east", false),
            ("us.east", "us-east", true),
            ("*", "", true),
            ("u*t", "us-east", true),
            ("[ab]", "a", true),
            // Only the first branch is bound to the beginning, only the last to the end.
            ("a|b", "ax", true),
            ("a|b", "xb", true),
            ("a|b", "xa", false),
            ("=us", "=us", true),
            ("/us/", "bus1", true),
            ("/^us$/", "bus1", false),
            ("/(?i)US/", "bus", true),
            ("//", "anything", true),
            ("/", "/", true),
            ("/", "a", false),
            ("/[/", "[", false),
            ("5.10", "5x10", true),
        ] {
            let pattern = Pattern::new(value);
            assert_eq!(pattern.matches(text), wanted, "{value} on {text:?}");
            let mut words = Words::default();
            words.add("before");
            words.add(text);
            words.add("behind");
            let other = ["before", "behind"].iter().any(|word| pattern.matches(word));
            assert_eq!(
                pattern.matches_any(words.text()),
                wanted || other,
                "{value} among {words:?}"
            );
        }
        assert!(!Pattern::new("*").matches_any(Words::default().text()), "no word, no match");
    }
}
