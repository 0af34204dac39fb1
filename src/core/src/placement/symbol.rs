//! Texts that many nodes share, such as the values of labels, kept once: what has been read and
//! answered for one node is then at hand for all others.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Deref;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// All symbols in use, and some that are not any more.
static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);
static EMPTY: LazyLock<Symbol> = LazyLock::new(|| Symbol::of(""));

#[derive(Default)]
struct Known {
    texts: HashSet<Arc<str>>,
    /// How many of the texts were in use when that was last looked at.
    in_use: usize,
}

/// A text; equal texts are at the same address.
#[derive(Clone, Debug, Eq)]
pub(super) struct Symbol(Arc<str>);

impl PartialEq for Symbol {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Symbol {
    /// The symbol for a text.
    pub(super) fn of(text: &str) -> Self {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(symbol) = known.texts.get(text) {
            return Self(symbol.clone());
        }
        // Seldom enough that a new text costs no more than a few steps.
        if known.texts.len() > 2 * known.in_use + 1024 {
            known.texts.retain(|text| Arc::strong_count(text) > 1);
            known.in_use = known.texts.len();
        }
        let symbol: Arc<str> = text.into();
        known.texts.insert(symbol.clone());
        Self(symbol)
    }

    /// The symbol for no text.
    pub(super) fn empty() -> &'static Self {
        &EMPTY
    }
}

impl Deref for Symbol {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// Answers to one question about symbols that stay in use meanwhile: each is asked about once.
#[derive(Debug, Default)]
pub(super) struct Answers {
    known: HashMap<*const u8, bool, BuildHasherDefault<AddressHasher>>,
    /// Where the label that is asked about was found last.
    place: usize,
}

impl Answers {
    /// The answer for a symbol; `find` gives it the first time.
    pub(super) fn get(&mut self, symbol: &Symbol, find: impl FnOnce(&str) -> bool) -> bool {
        *self.known.entry(symbol.as_ptr()).or_insert_with(|| find(symbol))
    }

    /// A label's value. Most nodes have the same labels in the same order, so it is looked for first
    /// where the last node had it, and the others are not read.
    pub(super) fn value<'a>(
        &mut self,
        labels: &'a [(Symbol, Symbol)],
        key: &str,
    ) -> Option<&'a Symbol> {
        let is_at = |(known, _): &(Symbol, Symbol)| **known == *key;
        if !labels.get(self.place).is_some_and(is_at) {
            self.place = labels.iter().position(is_at)?;
        }
        Some(&labels[self.place].1)
    }
}

/// For addresses, which nobody chooses: they need no protection, and a node may have many symbols.
#[derive(Debug, Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_usize((*byte).into()));
    }

    fn write_usize(&mut self, address: usize) {
        // Fibonacci hashing; the table looks at the lowest bits and at the highest.
        let product = (self.0 ^ address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one_symbol_and_asked_about_once() {
        let [a, b, other] = ["symbol", "symbol", "another"].map(Symbol::of);
        let mut answers = Answers::default();
        assert!(answers.get(&a, |text| text == "symbol"));
        assert!(answers.get(&b, |_| unreachable!("asked again")));
        assert!(!answers.get(&other, |text| text == "symbol"));
        assert!(!answers.get(Symbol::empty(), |text| text == "symbol"));
    }

    #[test]
    fn a_label_is_found_wherever_it_is() {
        let labels = |of: &[&str]| -> Vec<(Symbol, Symbol)> {
            of.iter()
                .map(|key| (Symbol::of(key), Symbol::of(&format!("{key} of {of:?}"))))
                .collect()
        };
        let mut answers = Answers::default();
        for of in [&["zone"][..], &["disk", "zone"], &["disk", "zone"], &["disk"], &[], &["zone"]] {
            let labels = labels(of);
            let expected = of.contains(&"zone").then(|| format!("zone of {of:?}"));
            let found = answers.value(&labels, "zone").map(|value| (**value).to_owned());
            assert_eq!(found, expected, "{of:?}");
        }
    }

    #[test]
    fn a_symbol_in_use_outlives_many_that_are_not() {
        let kept = Symbol::of("kept");
        (0..10_000).for_each(|number| drop(Symbol::of(&format!("dropped-{number}"))));
        assert_eq!(Symbol::of("kept").as_ptr(), kept.as_ptr());
    }
}
