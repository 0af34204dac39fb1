//! Swarm's expressions: `KEY==VALUE` and `KEY!=VALUE`, preferred only with `~` before the value.

use std::fmt;

use super::pattern::Pattern;
use super::symbol::{Answers, Symbol};
use super::words::Words;

/// Why an expression is none, in Swarm's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    /// Neither operator is in it.
    #[error("One of operator ==, != is expected")]
    NoOperator,
    /// What stands before the operator.
    #[error("Key '{0}' is invalid")]
    Key(String),
    /// What stands behind the operator.
    #[error("Value '{0}' is invalid")]
    Value(String),
}

/// An expression, ready to be compared.
#[derive(Clone, Debug)]
pub(super) struct Expression {
    pub(super) key: String,
    equal: bool,
    /// Without `~`.
    pub(super) value: String,
    /// Preferred only.
    pub(super) soft: bool,
    pattern: Pattern,
}

impl Expression {
    /// Reads one expression. `==` is looked for first, wherever it stands: `a!==b` has the key `a!`.
    pub(super) fn parse(text: &str) -> Result<Self, ExpressionError> {
        let split = |operator, equal| text.split_once(operator).map(|(k, v)| (k, v, equal));
        let (key, value, equal) =
            split("==", true).or_else(|| split("!=", false)).ok_or(ExpressionError::NoOperator)?;
        if !is_key(key) {
            return Err(ExpressionError::Key(key.to_owned()));
        }
        if !is_value(value) {
            return Err(ExpressionError::Value(value.to_owned()));
        }
        let soft = value.starts_with('~');
        let value = value.trim_start_matches('~');
        Ok(Self {
            key: key.to_owned(),
            equal,
            value: value.to_owned(),
            soft,
            pattern: Pattern::new(value),
        })
    }

    /// Whether its value is a well-formed pattern.
    pub(super) fn has_pattern(&self) -> bool {
        self.pattern.is_well_formed()
    }

    /// Reads several; the first that is malformed answers.
    pub(super) fn parse_all(texts: &[String]) -> Result<Vec<Self>, ExpressionError> {
        texts.iter().map(|text| Self::parse(text)).collect()
    }

    /// Whether one of the texts matches, or with `!=` none of them.
    pub(super) fn holds<'a>(&self, mut texts: impl Iterator<Item = &'a str>) -> bool {
        texts.any(|text| self.pattern.matches(text)) == self.equal
    }

    /// Like [`Self::holds`], for words: those that have more than [`is_hex`] allows, and the others.
    ///
    /// [`is_hex`]: super::lines::is_hex
    pub(super) fn holds_for_words(&self, names: &Words, hex: &Words) -> bool {
        let found = self.pattern.words().is_some_and(|lines| {
            lines.match_any(names.text()) || !lines.excludes_hex() && lines.match_any(hex.text())
        });
        found == self.equal
    }

    /// What a word that matches begins with, one of these; none if it may begin with anything.
    pub(super) fn beginnings(&self) -> Option<Vec<&[u8]>> {
        self.pattern.words()?.beginnings()
    }

    /// Like [`Self::holds`], for texts that other nodes have too.
    pub(super) fn holds_for_symbols<'a>(
        &self,
        mut symbols: impl Iterator<Item = &'a Symbol>,
        answers: &mut Answers,
    ) -> bool {
        symbols.any(|s| answers.get(s, |text| self.pattern.matches(text))) == self.equal
    }

    /// Like [`Self::holds_for_symbols`], each being the text of several words.
    pub(super) fn holds_for_lists<'a>(
        &self,
        mut lists: impl Iterator<Item = &'a Symbol>,
        answers: &mut Answers,
    ) -> bool {
        let words = self.pattern.words();
        let matches = |text: &str| words.is_some_and(|lines| lines.match_any(text));
        lists.any(|list| answers.get(list, matches)) == self.equal
    }
}

/// Without `~`, as Swarm writes it in its answers.
impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.key, if self.equal { "==" } else { "!=" }, self.value)
    }
}

/// `[a-z]` in either case, which to Go's `(?i)` includes the long s and the Kelvin sign.
fn is_letter(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '\u{17f}' || c == '\u{212a}'
}

/// `^(?i)[a-z_][a-z0-9\-_.]+$`
fn is_key(text: &str) -> bool {
    let mut rest = text.chars();
    rest.next().is_some_and(|c| is_letter(c) || c == '_')
        && !rest.as_str().is_empty()
        && rest.all(|c| is_letter(c) || c.is_ascii_digit() || "-_.".contains(c))
}

/// `^(?i)[=!\/]?(~)?[a-z0-9:\-_\s\.\*/\(\)\?\+\[\]\\\^\$\|]+$`
fn is_value(text: &str) -> bool {
    let inner = |c: char| {
        is_letter(c)
            || c.is_ascii_digit()
            || r":-_.*/()?+[]\^$|".contains(c)
            || "\t\n\x0c\r ".contains(c)
    };
    let rest = text.strip_prefix(['=', '!', '/']).unwrap_or(text);
    let rest = rest.strip_prefix('~').unwrap_or(rest);
    // A slash may be the prefix or, where nothing else is there, the value.
    (!rest.is_empty() && rest.chars().all(inner)) || text == "/"
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("region", "One of operator ==, != is expected")]
    #[case("region=us", "One of operator ==, != is expected")]
    #[case("", "One of operator ==, != is expected")]
    #[case("==x", "Key '' is invalid")]
    #[case("a==x", "Key 'a' is invalid")]
    #[case("1a==x", "Key '1a' is invalid")]
    #[case("a b==x", "Key 'a b' is invalid")]
    #[case("region ==x", "Key 'region ' is invalid")]
    #[case("region!==x", "Key 'region!' is invalid")]
    #[case("reg*==x", "Key 'reg*' is invalid")]
    #[case("transship.dev/pool==x", "Key 'transship.dev/pool' is invalid")]
    #[case("region==", "Value '' is invalid")]
    #[case("region==~", "Value '~' is invalid")]
    #[case("region==~us~", "Value '~us~' is invalid")]
    #[case("region==~~us", "Value '~~us' is invalid")]
    #[case("region===", "Value '=' is invalid")]
    #[case("region!=!", "Value '!' is invalid")]
    #[case("node==a,b", "Value 'a,b' is invalid")]
    #[case("node=={a}", "Value '{a}' is invalid")]
    #[case("region==a!=b", "Value 'a!=b' is invalid")]
    fn malformed_expressions_are_refused_in_swarms_words(#[case] text: &str, #[case] error: &str) {
        assert_eq!(Expression::parse(text).unwrap_err().to_string(), error);
    }

    #[rstest]
    #[case("region==us", "region==us", false)]
    #[case("region!=us", "region!=us", false)]
    #[case("region==~us", "region==us", true)]
    #[case("region!=~/us-(a|b)/", "region!=/us-(a|b)/", true)]
    #[case("region===us", "region===us", false)]
    #[case("region!=!us", "region!=!us", false)]
    #[case("region==/~us/", "region==/~us/", false)]
    #[case("_x==a b", "_x==a b", false)]
    #[case("zone==/", "zone==/", false)]
    fn expressions_are_shown_without_the_tilde(
        #[case] text: &str,
        #[case] shown: &str,
        #[case] soft: bool,
    ) {
        let expression = Expression::parse(text).unwrap();
        assert_eq!((expression.to_string().as_str(), expression.soft), (shown, soft));
    }

    #[test]
    fn without_any_text_only_a_negation_holds() {
        for (text, wanted) in [("app==*", false), ("app!=*", true), ("app!=/[/", true)] {
            let expression = Expression::parse(text).unwrap();
            assert_eq!(expression.holds([].into_iter()), wanted, "{text}");
        }
    }
}
