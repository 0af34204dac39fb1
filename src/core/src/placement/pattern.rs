//! What the value of an expression matches.

use std::sync::OnceLock;

use regex::Regex;

use super::dialect;
use super::lines::Lines;

/// A compiled value: `/…/` is a regular expression that may match anywhere, anything else a glob
/// that matches all of the text. As in Swarm, a glob is a regular expression too, with `*` for any
/// characters: `.` matches any character, and brackets and bars keep their meaning.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    /// The only text that matches, where that is plain.
    literal: Option<String>,
    /// Otherwise what a text has to match; none if the expression is malformed: then nothing matches.
    whole: Option<String>,
    /// What a word has to match.
    word: Option<String>,
    /// Both are compiled when they are needed first: most patterns meet texts or words alone, and many
    /// are read without meeting any.
    regex: OnceLock<Option<Regex>>,
    words: OnceLock<Option<Lines>>,
}

impl Pattern {
    /// Reads the value of an expression, which is not empty.
    pub(super) fn new(value: &str) -> Self {
        // A slash alone is no regular expression: it cannot be both the first and the last.
        let inner = value.strip_prefix('/').and_then(|rest| rest.strip_suffix('/'));
        let (literal, whole, word) = match inner {
            Some(pattern) => {
                let pattern = dialect::from_go(pattern);
                (None, pattern.clone(), pattern)
            }
            None => glob(value),
        };
        Self { literal, whole, word, regex: OnceLock::new(), words: OnceLock::new() }
    }

    /// Whether it is well-formed. If not nothing matches, as in Swarm.
    pub(super) fn is_well_formed(&self) -> bool {
        self.literal.is_some() || self.regex().is_some()
    }

    /// Whether a text matches.
    pub(super) fn matches(&self, text: &str) -> bool {
        match &self.literal {
            Some(literal) => literal == text,
            None => self.regex().is_some_and(|regex| regex.is_match(text)),
        }
    }

    fn regex(&self) -> Option<&Regex> {
        self.regex.get_or_init(|| Regex::new(self.whole.as_deref()?).ok()).as_ref()
    }

    /// What finds a word that matches among many; none if the expression is malformed.
    pub(super) fn words(&self) -> Option<&Lines> {
        self.words.get_or_init(|| self.word.as_deref().and_then(Lines::new)).as_ref()
    }
}

/// The only text that matches, or what it has to match; and what a word has to match.
fn glob(value: &str) -> (Option<String>, Option<String>, Option<String>) {
    let regex = |value: &str| value.replace('*', ".*");
    let plain = |c: char| c.is_ascii_alphanumeric() || "_:/- ".contains(c);
    if value.chars().all(plain) {
        return (Some(value.to_owned()), None, dialect::from_go(&format!("^{value}$")));
    }
    let whole = dialect::from_go(&format!("^{}$", regex(value)));
    // A word is one line, so that what stands at its end may as well stand anywhere behind.
    let word = match value.chars().all(|c| plain(c) || c == '*' || c == '.') {
        true => {
            let begin = if value.starts_with('*') { "" } else { "^" };
            let end = if value.ends_with('*') { "" } else { "$" };
            dialect::from_go(&format!("{begin}{}{end}", regex(value.trim_matches('*'))))
        }
        false => whole.clone(),
    };
    (None, whole, word)
}

#[cfg(test)]
mod tests {
    use super::super::lines::is_hex;
    use super::super::words::Words;
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
            ("*east", "us-east", true),
            ("*-*t", "us-east", true),
            ("*s", "us-east", false),
            ("u*", "bus", false),
            ("**", "us", true),
            ("us*", "US", false),
            ("a.*|b", "xb", true),
            ("/^$/", "", true),
            ("/^$/", "us", false),
            ("/x?/", "", true),
            ("/[^a]/", "a", false),
            ("/e[^a]b/", "be", false),
            ("/e(?s:.)b/", "be", false),
            (r"/\Aus\z/", "us", true),
            (r"/\Aus\z/", "bus", false),
            (r"/\bus\B/", "us", false),
            (r"/e\sb/", "e", false),
            ("/[0-9a-f]+-/", "01234567-89ab", true),
            ("/(cafe|us)/", "cafe", true),
            ("/(cafe|us)/", "us", true),
            ("/(?i)CAFE/", "cafe", true),
            ("/(x|y)cafe/", "cafe", false),
            ("/(xy)*cafe/", "cafe", true),
            ("/(xy)+cafe/", "cafe", false),
            ("cafe", "cafe", true),
            ("cafe", "cafe-1", false),
            ("01*", "0123", true),
        ] {
            let pattern = Pattern::new(value);
            assert_eq!(pattern.matches(text), wanted, "{value} on {text:?}");
            let mut words = Words::default();
            words.add("before");
            words.add(text);
            words.add("behind");
            let other = ["before", "behind"].iter().any(|word| pattern.matches(word));
            let found = pattern.words().is_some_and(|lines| lines.match_any(words.text()));
            assert_eq!(found, wanted || other, "{value} among {words:?}");
            let excluded = pattern.words().is_none_or(Lines::excludes_hex);
            let hex = !text.is_empty() && is_hex(text);
            assert!(!(hex && wanted && excluded), "{value} matches {text:?}");
            let begins = |with: Vec<&[u8]>| with.iter().any(|b| text.as_bytes().starts_with(b));
            let beginnings = pattern.words().and_then(Lines::beginnings);
            assert!(!wanted || beginnings.is_none_or(begins), "{value} matches {text:?}");
        }
        for value in ["*", "/^$/", "//"] {
            let lines = Pattern::new(value);
            assert!(
                !lines.words().unwrap().match_any(Words::default().text()),
                "no word, no match"
            );
        }
    }

    #[test]
    fn what_words_begin_with_is_told_where_a_pattern_says_so() {
        for (value, wanted) in [
            ("web-0", Some(vec!["web-0"])),
            ("web*", Some(vec!["web"])),
            ("web.1", Some(vec!["web"])),
            ("/^web-[a-z]+$/", Some(vec!["web-"])),
            ("/^web-[ab]+$/", Some(vec!["web-a", "web-b"])),
            (r"/\A(web|db)-/", Some(vec!["web-", "db-"])),
            ("*web", None),
            ("/web/", None),
            ("/^(web)?/", None),
            ("/^web|db$/", None),
            ("web|db", None),
            ("/[/", None),
        ] {
            let pattern = Pattern::new(value);
            let found = pattern.words().and_then(Lines::beginnings);
            let wanted: Option<Vec<&[u8]>> =
                wanted.map(|texts| texts.into_iter().map(str::as_bytes).collect());
            assert_eq!(found, wanted, "{value}");
        }
    }
}
