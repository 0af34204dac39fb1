//! What a pod's annotations, and the placements of Migrations and MigrationPolicies, ask of a node, and
//! what is wrong with those that cannot be obeyed. `docs/placement.md` describes them.

use std::collections::BTreeMap;

use transship_api::{Placement, Strategy, names};

use super::expression::Expression;
use super::strategy_named;

/// Why what is asked for cannot be obeyed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Malformed {
    /// The field, such as `metadata.annotations[transship.dev/strategy]`.
    pub field: String,
    /// What is wrong, in Swarm's words where it has some, and in which expression.
    pub problem: String,
}

/// What the annotations of one pod ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    pub(super) constraints: Vec<String>,
    pub(super) affinities: Vec<String>,
    pub(super) whitelists: Vec<String>,
    /// Names of pods in the same namespace.
    pub(super) depends_on: Vec<String>,
    pub(super) strategy: Option<Strategy>,
}

/// Whether a pod's annotations can be obeyed. For admission: others' annotations are not looked at.
pub fn validate_annotations(annotations: &BTreeMap<String, String>) -> Result<(), Malformed> {
    let wishes = Wishes::read(annotations)?;
    let patterns = |annotation, texts: &[String]| match malformed_pattern(texts) {
        Some(problem) => Err(error(annotation, problem)),
        None => Ok(()),
    };
    patterns(names::CONSTRAINTS, &wishes.constraints)?;
    patterns(names::AFFINITIES, &wishes.affinities)?;
    match annotations.get(names::RESCHEDULE) {
        Some(text) => reschedule(text),
        None => Ok(()),
    }
}

/// Whether `spec.placement` of a Migration or MigrationPolicy can be obeyed.
pub fn validate_placement(placement: &Placement) -> Result<(), Malformed> {
    for (list, texts) in
        [("constraints", &placement.constraints), ("affinities", &placement.affinities)]
    {
        if let Some(problem) = malformed(texts).or_else(|| malformed_pattern(texts)) {
            return Err(Malformed { field: format!("spec.placement.{list}"), problem });
        }
    }
    Ok(())
}

impl Wishes {
    /// Reads and checks all of them.
    pub(super) fn read(annotations: &BTreeMap<String, String>) -> Result<Self, Malformed> {
        let list = |annotation, example| match annotations.get(annotation) {
            Some(text) => list(annotation, text, example),
            None => Ok(Vec::new()),
        };
        let mut whitelists = list(names::WHITELIST, r#"["node-a", "node-b"]"#)?;
        if !whitelists.is_empty() && whitelists.iter().all(|name| is_node_name(name)) {
            whitelists = vec![format!("node=={}", whitelists.join("|"))];
        }
        let wishes = Self {
            constraints: list(names::CONSTRAINTS, r#"["region==us*"]"#)?,
            affinities: list(names::AFFINITIES, r#"["container!=web*"]"#)?,
            whitelists,
            depends_on: list(names::DEPENDS_ON, r#"["db"]"#)?,
            strategy: annotations.get(names::STRATEGY).map(|text| strategy(text)).transpose()?,
        };
        expressions(names::CONSTRAINTS, &wishes.constraints)?;
        expressions(names::AFFINITIES, &wishes.affinities)?;
        expressions(names::WHITELIST, &wishes.whitelists)?;
        match wishes.depends_on.iter().find(|name| !is_node_name(name)) {
            Some(name) => Err(error(names::DEPENDS_ON, format!("{name:?} is no name of a pod"))),
            None => Ok(wishes),
        }
    }
}

fn error(annotation: &str, problem: impl Into<String>) -> Malformed {
    let field = format!("metadata.annotations[{annotation}]");
    Malformed { field, problem: problem.into() }
}

fn list(annotation: &str, text: &str, example: &str) -> Result<Vec<String>, Malformed> {
    serde_json::from_str(text)
        .map_err(|_| error(annotation, format!("write a JSON array of strings, such as {example}")))
}

fn expressions(annotation: &str, texts: &[String]) -> Result<(), Malformed> {
    match malformed(texts) {
        Some(problem) => Err(error(annotation, problem)),
        None => Ok(()),
    }
}

/// What is wrong with the first text that is no expression.
fn malformed(texts: &[String]) -> Option<String> {
    texts.iter().find_map(|text| {
        let problem = Expression::parse(text).err()?;
        Some(format!("{problem} in {text:?}"))
    })
}

/// What is wrong with the first expression whose value is no pattern. Swarm lets it pass and match
/// nothing; where somebody can still be told it is refused.
fn malformed_pattern(texts: &[String]) -> Option<String> {
    let text = texts.iter().find(|t| Expression::parse(t).is_ok_and(|read| !read.has_pattern()))?;
    Some(format!("{text:?} has a malformed pattern; write a name, a glob like us* or /REGEX/"))
}

fn strategy(text: &str) -> Result<Strategy, Malformed> {
    strategy_named(text).ok_or_else(|| {
        error(
            names::STRATEGY,
            format!("unknown strategy {text:?}; write spread, binpack or random"),
        )
    })
}

/// A single word, or Swarm's JSON array of at most one.
fn reschedule(text: &str) -> Result<(), Malformed> {
    let policies: Vec<String> =
        serde_json::from_str(text).unwrap_or_else(|_| vec![text.to_owned()]);
    let problem = match policies.as_slice() {
        [] => return Ok(()),
        [policy] if matches!(policy.as_str(), "off" | "on-node-failure") => return Ok(()),
        [policy] => format!("invalid reschedule policy: {policy}"),
        _ => "too many reschedule policies".to_owned(),
    };
    Err(error(names::RESCHEDULE, problem))
}

/// A name as Kubernetes has them for nodes and pods, as opposed to an expression.
fn is_node_name(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    !text.is_empty() && text.chars().all(inner)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn with(key: &str, value: &str) -> BTreeMap<String, String> {
        [(key.to_owned(), value.to_owned())].into()
    }

    #[rstest]
    #[case(names::CONSTRAINTS, r#"["region==us*", "disk!=~hdd"]"#)]
    #[case(names::CONSTRAINTS, "[]")]
    #[case(names::AFFINITIES, r#"["container!=/web-[0-9]+/"]"#)]
    #[case(names::WHITELIST, r#"["node-a", "node-b.example"]"#)]
    #[case(names::WHITELIST, r#"["node==~node-a|node-b"]"#)]
    #[case(names::DEPENDS_ON, r#"["db", "cache-0"]"#)]
    #[case(names::STRATEGY, "binpack")]
    #[case(names::STRATEGY, "binpacking")]
    #[case(names::RESCHEDULE, "on-node-failure")]
    #[case(names::RESCHEDULE, r#"["off"]"#)]
    #[case("example.com/constraints", "whatever")]
    fn what_can_be_obeyed_is_accepted(#[case] key: &str, #[case] value: &str) {
        assert_eq!(validate_annotations(&with(key, value)), Ok(()));
    }

    #[rstest]
    #[case(
        names::CONSTRAINTS,
        "region==us",
        r#"write a JSON array of strings, such as ["region==us*"]"#
    )]
    #[case(names::CONSTRAINTS, "[1]", r#"write a JSON array of strings, such as ["region==us*"]"#)]
    #[case(names::CONSTRAINTS, r#"["a==b"]"#, r#"Key 'a' is invalid in "a==b""#)]
    #[case(names::AFFINITIES, r#"["app==a,b"]"#, r#"Value 'a,b' is invalid in "app==a,b""#)]
    #[case(
        names::AFFINITIES,
        r#"["container==/web(/"]"#,
        r#""container==/web(/" has a malformed pattern; write a name, a glob like us* or /REGEX/"#
    )]
    #[case(names::WHITELIST, r#"["node=a"]"#, r#"One of operator ==, != is expected in "node=a""#)]
    #[case(names::DEPENDS_ON, r#"["a/b"]"#, r#""a/b" is no name of a pod"#)]
    #[case(names::STRATEGY, "best", r#"unknown strategy "best"; write spread, binpack or random"#)]
    #[case(names::RESCHEDULE, "always", "invalid reschedule policy: always")]
    #[case(names::RESCHEDULE, r#"["off","off"]"#, "too many reschedule policies")]
    fn what_cannot_is_refused_with_the_reason(
        #[case] key: &str,
        #[case] value: &str,
        #[case] problem: &str,
    ) {
        assert_eq!(validate_annotations(&with(key, value)), Err(error(key, problem)));
    }

    #[test]
    fn the_placement_of_an_object_is_judged_in_the_same_words() {
        let of = |constraints: &[&str], affinities: &[&str]| {
            let owned =
                |texts: &[&str]| -> Vec<String> { texts.iter().map(|t| (*t).to_owned()).collect() };
            let (constraints, affinities) = (owned(constraints), owned(affinities));
            let placement = Placement { constraints, affinities, strategy: None };
            validate_placement(&placement).map_err(|error| error.to_string())
        };
        assert_eq!(of(&[], &[]), Ok(()));
        assert_eq!(of(&["region==us*", "disk!=~hdd"], &["container!=/web-[0-9]+/"]), Ok(()));
        for (constraint, problem) in [
            ("region=us", r#"One of operator ==, != is expected in "region=us""#),
            ("9==us", r#"Key '9' is invalid in "9==us""#),
            ("region==", r#"Value '' is invalid in "region==""#),
            (
                "region==/(/",
                r#""region==/(/" has a malformed pattern; write a name, a glob like us* or /REGEX/"#,
            ),
        ] {
            let told = |list| Err(format!("spec.placement.{list}: {problem}"));
            assert_eq!(of(&["zone==a", constraint], &[]), told("constraints"));
            assert_eq!(of(&["zone==a"], &[constraint]), told("affinities"));
        }
    }

    #[test]
    fn a_list_of_names_is_one_whitelist() {
        let read = |value| Wishes::read(&with(names::WHITELIST, value)).unwrap().whitelists;
        assert_eq!(read(r#"["a", "b"]"#), ["node==a|b"]);
        assert_eq!(read(r#"["node==a", "node==b"]"#), ["node==a", "node==b"]);
        assert!(read("[]").is_empty());
    }
}
