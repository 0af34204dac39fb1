//! A pattern for one word, rewritten so that it finds a word among many in one go: each word is a
//! line of one text.

use regex::Regex;
use regex_syntax::hir::literal::{Extractor, Literal, Seq};
use regex_syntax::hir::{Class, ClassBytes, ClassBytesRange, ClassUnicode, ClassUnicodeRange};
use regex_syntax::hir::{Hir, HirKind, Look};

use super::words;

/// Whether a word has hexadecimal digits and dashes alone, as UIDs and ids of containers have.
pub(super) fn is_hex(word: &str) -> bool {
    word.bytes().all(is_hex_byte)
}

fn is_hex_byte(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-')
}

/// Finds words that match.
#[derive(Clone, Debug)]
pub(super) struct Lines {
    regex: Regex,
    excludes_hex: bool,
    /// Every word that matches begins with one of these; infinite where that says nothing.
    beginnings: Seq,
}

impl Lines {
    /// `pattern`: what a word has to match; none if it is malformed.
    pub(super) fn new(pattern: &str) -> Option<Self> {
        let hir = within_a_line(regex_syntax::parse(pattern).ok()?);
        let regex = Regex::new(&hir.to_string()).ok()?;
        let excludes_hex = needs_more_than_hex(&hir);
        Some(Self { regex, excludes_hex, beginnings: beginnings(&hir) })
    }

    /// Whether any of the words matches, given as [`words::Words::text`].
    pub(super) fn match_any(&self, text: &str) -> bool {
        words::lines(text).is_some_and(|lines| self.regex.is_match(lines))
    }

    /// No word matches for which [`is_hex`] holds.
    pub(super) fn excludes_hex(&self) -> bool {
        self.excludes_hex
    }

    /// What words begin with that match, one of these; none if they may begin with anything.
    pub(super) fn beginnings(&self) -> Option<Vec<&[u8]>> {
        Some(self.beginnings.literals()?.iter().map(Literal::as_bytes).collect())
    }
}

/// The same pattern with the beginning and end of the text being those of a line, and matching no
/// line break. Groups are left out: nobody asks for them.
fn within_a_line(hir: Hir) -> Hir {
    match hir.into_kind() {
        HirKind::Empty => Hir::empty(),
        HirKind::Literal(literal) if literal.0.contains(&b'\n') => Hir::fail(),
        HirKind::Literal(literal) => Hir::literal(literal.0),
        HirKind::Class(Class::Unicode(mut class)) => {
            class.difference(&ClassUnicode::new([ClassUnicodeRange::new('\n', '\n')]));
            Hir::class(Class::Unicode(class))
        }
        HirKind::Class(Class::Bytes(mut class)) => {
            class.difference(&ClassBytes::new([ClassBytesRange::new(b'\n', b'\n')]));
            Hir::class(Class::Bytes(class))
        }
        HirKind::Look(Look::Start) => Hir::look(Look::StartLF),
        HirKind::Look(Look::End) => Hir::look(Look::EndLF),
        HirKind::Look(look) => Hir::look(look),
        HirKind::Repetition(mut repetition) => {
            repetition.sub = Box::new(within_a_line(*repetition.sub));
            Hir::repetition(repetition)
        }
        HirKind::Capture(group) => within_a_line(*group.sub),
        HirKind::Concat(parts) => Hir::concat(parts.into_iter().map(within_a_line).collect()),
        HirKind::Alternation(parts) => {
            Hir::alternation(parts.into_iter().map(within_a_line).collect())
        }
    }
}

/// What the line begins with wherever the pattern, made by [`within_a_line`], matches.
fn beginnings(hir: &Hir) -> Seq {
    let is_bound = hir.properties().look_set_prefix().contains(Look::StartLF);
    let literals = Extractor::new().extract(hir);
    match literals.min_literal_len() {
        Some(1..) if is_bound => literals,
        _ => Seq::infinite(),
    }
}

/// Whether whatever matches has a character that [`is_hex`] does not allow.
fn needs_more_than_hex(hir: &Hir) -> bool {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => false,
        HirKind::Literal(literal) => !literal.0.iter().copied().all(is_hex_byte),
        HirKind::Class(class) => {
            let hex = (0..=u8::MAX).filter(|byte| is_hex_byte(*byte));
            let mut within = match class {
                Class::Unicode(class) => class.clone(),
                Class::Bytes(class) => match class.to_unicode_class() {
                    Some(class) => class,
                    None => return false,
                },
            };
            let hex = hex.map(|byte| ClassUnicodeRange::new(byte.into(), byte.into()));
            within.intersect(&ClassUnicode::new(hex));
            within.ranges().is_empty()
        }
        HirKind::Repetition(repetition) => {
            repetition.min > 0 && needs_more_than_hex(&repetition.sub)
        }
        HirKind::Capture(group) => needs_more_than_hex(&group.sub),
        HirKind::Concat(parts) => parts.iter().any(needs_more_than_hex),
        HirKind::Alternation(parts) => parts.iter().all(needs_more_than_hex),
    }
}
