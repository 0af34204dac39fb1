//! Our plugin in the text of a CNI list. The text is not parsed and written anew: our entry is put behind
//! the last plugin, and taken out again, and every other byte stays.

use std::ops::Range;

/// What is put behind the last plugin.
const ENTRY: &str = r#"{"type":"transship-cni"}"#;
const TYPE: &str = "transship-cni";

/// Whether our plugin is in the list.
pub fn contains(text: &str) -> Result<bool, String> {
    Ok(plugins(text)?.iter().any(|range| is_ours(&text[range.clone()])))
}

/// The text with our plugin at the end of the list; `None` if it is there already. If others were put behind
/// us it is moved to the end.
pub fn with(text: &str) -> Result<Option<String>, String> {
    let elements = plugins(text)?;
    let Some(last) = elements.last() else { return Err("has an empty list of plugins".into()) };
    if is_ours(&text[last.clone()]) {
        return Ok(None);
    }
    match without(text)? {
        Some(without) => with(&without).map(|with| with.or(Some(without))),
        None => {
            let mut with = text.to_owned();
            with.insert_str(last.end, &format!(",{ENTRY}"));
            Ok(Some(with))
        }
    }
}

/// The text without our plugin; `None` if it is not there.
pub fn without(text: &str) -> Result<Option<String>, String> {
    let elements = plugins(text)?;
    let Some(index) = elements.iter().position(|range| is_ours(&text[range.clone()])) else {
        return Ok(None);
    };
    let ours = &elements[index];
    // Together with one comma and the space beside it.
    let cut = match (index.checked_sub(1).map(|before| &elements[before]), elements.get(index + 1))
    {
        (Some(before), _) => before.end..ours.end,
        (None, Some(after)) => ours.start..after.start,
        (None, None) => ours.clone(),
    };
    let mut without = text.to_owned();
    without.replace_range(cut, "");
    Ok(Some(without))
}

fn is_ours(element: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(element).is_ok_and(|plugin| plugin["type"] == TYPE)
}

/// Where the elements of the top-level `plugins` array lie.
fn plugins(text: &str) -> Result<Vec<Range<usize>>, String> {
    // First a real parser, so that the scanner below needs to know valid JSON only.
    serde_json::from_str::<serde_json::Value>(text)
        .map_err(|error| format!("is not JSON: {error}"))?;
    let mut scanner = Scanner { bytes: text.as_bytes(), at: 0 };
    let mut found = None;
    scanner
        .members(|scanner, key| {
            if key == "\"plugins\"" && scanner.peek() == Some(b'[') {
                found = Some(scanner.elements()?);
                Some(())
            } else {
                scanner.value().map(drop)
            }
        })
        .ok_or("is not a JSON object")?;
    found.ok_or_else(|| "has no list of plugins".into())
}

/// Walks over valid JSON; `None` where the text is not what was expected.
struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    /// The next byte that is not white space.
    fn peek(&mut self) -> Option<u8> {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
        self.bytes.get(self.at).copied()
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn value(&mut self) -> Option<Range<usize>> {
        let first = self.peek()?;
        let start = self.at;
        match first {
            b'"' => self.string()?,
            b'{' => self.members(|scanner, _| scanner.value().map(drop))?,
            b'[' => drop(self.elements()?),
            _ => {
                while self.bytes.get(self.at).is_some_and(|b| !b",]} \t\r\n".contains(b)) {
                    self.at += 1;
                }
            }
        }
        Some(start..self.at)
    }

    fn string(&mut self) -> Option<()> {
        self.expect(b'"')?;
        loop {
            match self.bytes.get(self.at)? {
                b'\\' => self.at += 2,
                b'"' => {
                    self.at += 1;
                    return Some(());
                }
                _ => self.at += 1,
            }
        }
    }

    /// Calls `member` at each value of an object, with the key as written.
    fn members(&mut self, mut member: impl FnMut(&mut Self, &str) -> Option<()>) -> Option<()> {
        self.expect(b'{')?;
        if self.peek()? == b'}' {
            return self.expect(b'}');
        }
        loop {
            self.peek()?;
            let start = self.at;
            self.string()?;
            let key = std::str::from_utf8(&self.bytes[start..self.at]).ok()?.to_owned();
            self.expect(b':')?;
            member(self, &key)?;
            match self.peek()? {
                b',' => self.at += 1,
                _ => return self.expect(b'}'),
            }
        }
    }

    fn elements(&mut self) -> Option<Vec<Range<usize>>> {
        self.expect(b'[')?;
        let mut elements = Vec::new();
        if self.peek()? == b']' {
            self.at += 1;
            return Some(elements);
        }
        loop {
            elements.push(self.value()?);
            match self.peek()? {
                b',' => self.at += 1,
                _ => {
                    self.expect(b']')?;
                    return Some(elements);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPACT: &str = r#"{"cniVersion":"1.0.0","name":"ts","plugins":[{"type":"bridge","ipam":{"ranges":[[{"subnet":"10.244.0.0/16"}]]}}]}"#;
    const PRETTY: &str = r#"{
  "name": "k8s \"plugins\": []",
  "plugins": [
    {
      "type": "calico",
      "note": "a ] } , [ \" \\"
    },
    { "type": "portmap", "capabilities": {"portMappings": true}, "n": -1.5e3, "x": null }
  ],
  "cniVersion": "0.3.1"
}
"#;

    #[test]
    fn our_plugin_comes_last_and_goes_without_a_trace() {
        for text in [COMPACT, PRETTY] {
            assert!(!contains(text).unwrap());
            let with_us = with(text).unwrap().unwrap();
            let parsed: serde_json::Value = serde_json::from_str(&with_us).unwrap();
            let plugins = parsed["plugins"].as_array().unwrap();
            assert_eq!(plugins.last().unwrap()["type"], "transship-cni");
            assert!(contains(&with_us).unwrap());
            assert_eq!(with(&with_us).unwrap(), None, "adding again changes nothing");
            assert_eq!(without(&with_us).unwrap().as_deref(), Some(text));
            assert_eq!(without(text).unwrap(), None);
        }
    }

    #[test]
    fn edits_around_our_plugin_survive_its_removal() {
        let with_us = with(PRETTY).unwrap().unwrap();
        let edited = with_us.replace("0.3.1", "1.0.0").replace("\"calico\"", "\"cilium\"");
        let rest = without(&edited).unwrap().unwrap();
        assert_eq!(rest, PRETTY.replace("0.3.1", "1.0.0").replace("\"calico\"", "\"cilium\""));
    }

    #[test]
    fn our_plugin_moves_behind_one_that_was_put_after_it() {
        let text = r#"{"plugins":[{"type":"a"},{"type":"transship-cni"},{"type":"b"}]}"#;
        assert_eq!(
            with(text).unwrap().unwrap(),
            r#"{"plugins":[{"type":"a"},{"type":"b"},{"type":"transship-cni"}]}"#
        );
        let first = r#"{"plugins":[{"type":"transship-cni"}, {"type":"b"}]}"#;
        assert_eq!(without(first).unwrap().unwrap(), r#"{"plugins":[{"type":"b"}]}"#);
    }

    #[test]
    fn a_text_that_is_no_list_is_refused_and_not_changed() {
        for text in ["", "{", "[]", "{}", r#"{"plugins":{}}"#, r#"{"type":"bridge"}"#] {
            assert!(with(text).is_err(), "{text}");
        }
        assert!(with(r#"{"plugins":[]}"#).is_err());
    }
}
