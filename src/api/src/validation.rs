//! Rules that several kinds share: patterns with the one sentence that says what to write.
//!
//! Formats are CEL rules rather than schema patterns, because a failed pattern is answered with
//! the pattern itself. Lengths stay in the schema: they bound the cost of the rules.

use kube::core::Rule;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};

const DNS_SUBDOMAIN: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// At most four parts of at most five digits: the sum cannot overflow what the API server's
/// `duration()` holds, so the comparison after the pattern never ends in an error.
const DURATION: &str = r"^([0-9]{1,5}([.][0-9]{1,6})?(ms|s|m|h)){1,4}$";
const QUANTITY: &str = r"^[0-9]{1,12}([.][0-9]{1,6})?(k|M|G|T|Ki|Mi|Gi|Ti)?$";

/// A pod's name.
pub(crate) fn pod_name() -> Rule {
    Rule::new(format!("self.matches('{DNS_SUBDOMAIN}')"))
        .message("write the name of a pod of this namespace alone, such as web-0 (lower-case letters, digits, '-' and '.'), without 'pod/'")
}

/// A node's name.
pub(crate) fn node_name() -> Rule {
    Rule::new(format!("self.matches('{DNS_SUBDOMAIN}')"))
        .message("write the name of a node as 'kubectl get nodes' prints it, such as node-b (lower-case letters, digits, '-' and '.'), without 'node/'")
}

/// The name of another object.
pub(crate) fn object_name() -> Rule {
    Rule::new(format!("self.matches('{DNS_SUBDOMAIN}')")).message(
        "write the object's name alone, such as default (lower-case letters, digits, '-' and '.')",
    )
}

/// A duration longer than nothing.
pub(crate) fn duration(example: &str) -> Rule {
    Rule::new(format!(
        "string(self).matches('{DURATION}') && duration(string(self)) > duration('0s')"
    ))
        .message(format!("write a duration above zero as numbers with the units ms, s, m or h, such as {example} or 1m30s").as_str())
}

/// On a struct: one duration is shorter than another. Silent where either is malformed, so that one
/// mistake gets one answer.
pub(crate) fn shorter(less: &str, more: &str, example: &str) -> Rule {
    Rule::new(format!(
        "!string(self.{less}).matches('{DURATION}') || !string(self.{more}).matches('{DURATION}') || \
         duration(string(self.{less})) < duration(string(self.{more}))"
    ))
    .message(format!("write a {less} that is shorter than {more}, such as {example}").as_str())
}

/// A rate in bytes per second, above nothing.
pub(crate) fn rate() -> Rule {
    Rule::new(format!(
        "string(self).matches('{QUANTITY}') && quantity(string(self)).isGreaterThan(quantity('0'))"
    ))
    .message(
        "write the bytes per second as a quantity above zero, such as 200Mi or 1Gi, without '/s'",
    )
}

/// Schema of durations and amounts: a bare number passes it too, because then the rule answers with
/// what to write. A schema of type string would answer with the name of the type.
pub(crate) fn text_or_number(_: &mut SchemaGenerator) -> Schema {
    // kube makes such fields nullable unless told otherwise; a null would stay and bar the default.
    json_schema!({"x-kubernetes-int-or-string": true, "maxLength": 32, "nullable": false})
}

/// Like [`text_or_number`], for a field that may be absent.
pub(crate) fn optional_text_or_number(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = text_or_number(generator);
    schema.insert("nullable".into(), true.into());
    schema
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrNumber {
    Text(String),
    Number(i64),
}

impl From<TextOrNumber> for String {
    fn from(value: TextOrNumber) -> Self {
        match value {
            TextOrNumber::Text(text) => text,
            TextOrNumber::Number(number) => number.to_string(),
        }
    }
}

/// Reads a text, or a number as its text: an amount of bytes needs no suffix.
pub(crate) fn read_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    TextOrNumber::deserialize(deserializer).map(Into::into)
}

/// Like [`read_text`], for a field that may be absent.
pub(crate) fn read_optional_text<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    Ok(Option::<TextOrNumber>::deserialize(deserializer)?.map(Into::into))
}

/// At the root of a kind: `status.<field>`, once written, is neither changed nor removed. At the
/// root, because a rule on the field itself is not evaluated when the field goes away.
pub(crate) fn status_written_once(field: &str) -> Rule {
    Rule::new(format!(
        "!has(oldSelf.status) || !has(oldSelf.status.{field}) || \
         (has(self.status) && has(self.status.{field}) && self.status.{field} == oldSelf.status.{field})"
    ))
    .message(format!("status.{field} is written once; leave it as it is, or create another Migration").as_str())
}
