//! Many short words in one text, so that looking for one among those of 5,000 nodes reads memory in
//! order instead of following a pointer for each.

/// A multiset of words. Words hold no line break: where one does, it counts as several.
#[derive(Clone, Debug, Default)]
pub struct Words {
    /// `\nfirst\nsecond\n`, or empty.
    text: String,
}

impl Words {
    /// Adds a word.
    pub fn add(&mut self, word: &str) {
        if self.text.is_empty() {
            self.text.push('\n');
        }
        self.text.push_str(word);
        self.text.push('\n');
    }

    /// Forgets everything but the memory.
    pub fn clear(&mut self) {
        self.text.clear();
    }

    /// Every word between line breaks, with one in front and one behind; empty without words.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// The words of a [`Words::text`] as the lines of a text, without the line breaks around it; none if
/// there is no word.
pub fn lines(text: &str) -> Option<&str> {
    text.strip_prefix('\n')?.strip_suffix('\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_as_they_went_in() {
        let mut words = Words::default();
        assert_eq!(lines(words.text()), None);
        for word in ["a", "", "b"] {
            words.add(word);
        }
        assert_eq!(words.text(), "\na\n\nb\n");
        assert_eq!(lines(words.text()), Some("a\n\nb"));
        words.clear();
        assert_eq!(lines(words.text()), None);
        words.add("");
        assert_eq!(lines(words.text()), Some(""));
    }
}
