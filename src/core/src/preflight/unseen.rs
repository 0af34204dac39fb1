//! What an agent could not look at. Where that may hide what cannot be moved, the pod stays where it is: it would
//! show only while the pod stands still.

use transship_api::Network;

use super::cold::is_cold;
use super::pod::moves;
use super::{Check, Input, Violation};
use crate::facts::{Part, Unseen};

/// Of the agents of both nodes.
pub(super) const CHECK: Check = Check {
    name: "NotInspected",
    finds: "what a node's agent could not look at, and what may hide any of the above: processes, mounts, namespaces, rules, images, the CNI configuration; with `network: Preserve` also tracked connections",
    remedy: "create the Migration anew; if it stays, mend on the node what the message names",
    look: unseen,
};

/// Of an agent that cannot tell anything.
pub fn not_inspected(message: String) -> Violation {
    let Check { name, remedy, .. } = CHECK;
    Violation { check: name, remedy: remedy.to_owned(), ..Violation::of_pod(message) }
}

/// What could not be looked at, where nothing else is in the pod's way: another time it may.
pub fn may_pass(violations: &[Violation]) -> Option<String> {
    let is_all = violations.iter().all(|violation| violation.check == CHECK.name);
    let tell = |Violation { container, message, .. }: &Violation| match container.as_str() {
        "" => message.clone(),
        container => format!("container {container}: {message}"),
    };
    let messages: Vec<String> = violations.iter().map(tell).collect();
    (is_all && !messages.is_empty()).then(|| messages.join(" | "))
}

fn unseen(input: &Input<'_>) -> Vec<Violation> {
    let of_source = input.facts.into_iter().flat_map(|facts| &facts.unseen);
    let of_source = of_source
        .filter(|unseen| matters(input, unseen))
        .map(|unseen| Violation::of_container(&unseen.container, unseen.message.as_str()));
    let node = input.target.map_or("the target", |target| target.name.as_str());
    let of_target = input.target_facts.into_iter().flat_map(|facts| &facts.unseen);
    let of_target =
        of_target.map(|unseen| Violation::of_pod(format!("{node}: {}", unseen.message)));
    of_source.chain(of_target).collect()
}

/// Whether the move that is asked for needs to know it.
fn matters(input: &Input<'_>, unseen: &Unseen) -> bool {
    let is_needed = match unseen.part {
        Part::Processes => !is_cold(input),
        // Elsewhere they are named as far as they are known, and forbid nothing.
        Part::Connections => !is_cold(input) && input.migration.spec.network == Network::Preserve,
        Part::Rest => true,
    };
    is_needed && (unseen.container.is_empty() || moves(input, &unseen.container))
}
