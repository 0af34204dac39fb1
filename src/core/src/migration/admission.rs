//! Whether a Migration is carried out: first what the API server knows ([`screen`], answered at
//! once), then what the agents found ([`judge`]).

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use transship_api::conditions::{self as c, ConditionStatus, reasons};
use transship_api::migration::{Forecast, MAX_CHOICE_MESSAGE, MAX_VIOLATIONS};
use transship_api::{HandOver, Migration, MigrationStatus, Mode, Network, PodRef, Step, duration};

use super::status::{Draft, for_people, whole_seconds};
use crate::placement::{self, Candidate, Choice, Load, NO_LOAD, Pending};
use crate::preflight::{self, Input, NetworkChoice, NodeView, Refusal, Violation};
use crate::sequential_pod::{claims, is_exclusive};
use crate::target_pod;

/// What the API server's knowledge says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Screening {
    /// It cannot be carried out.
    Refused(Refusal),
    /// Not now.
    Busy(String),
    /// The agents may be asked.
    Ready {
        /// Target node.
        target: String,
        /// The Migration names it.
        given: bool,
    },
}

/// As [`screen`], on nodes to which other Migrations are to bring the `expected` pods. Where it is these alone that leave
/// it no node it waits: they may never come there.
pub fn screen_beside(
    input: &Input<'_>,
    active: &BTreeMap<String, usize>,
    loads: &BTreeMap<String, Load>,
    expected: &[Pending],
    overcommit_percent: i64,
) -> Screening {
    let alone = || screen(input, active, loads, overcommit_percent);
    if expected.is_empty() {
        return alone();
    }
    let mut all = loads.clone();
    for pending in expected {
        Load::add_pending(&mut all, pending, input.nodes);
    }
    match screen(input, active, &all, overcommit_percent) {
        Screening::Refused(refusal)
            if refusal.reason == reasons::NO_NODE_FITS
                && !matches!(alone(), Screening::Refused(_)) =>
        {
            Screening::Busy(format!(
                "waits for what Migrations under way bring to their nodes: {}",
                refusal.message
            ))
        }
        screening => screening,
    }
}

/// Judges the request by what the API server knows. `active` counts the migrations under way by
/// node, this one left out; `loads` are the nodes' loads, pods that are to come included, needed to choose
/// a node and where [`looks_at_pods`]; `overcommit_percent` is 0, or negative to keep a part of each node free.
pub fn screen(
    input: &Input<'_>,
    active: &BTreeMap<String, usize>,
    loads: &BTreeMap<String, Load>,
    overcommit_percent: i64,
) -> Screening {
    let candidate =
        |node| Candidate { node, load: loads.get(node.name.as_str()).unwrap_or(&NO_LOAD) };
    let named = input.migration.spec.target_node.as_deref();
    let find = |name: &str| input.nodes.iter().find(|n| n.name == name);
    let given = Input { target: named.and_then(find), ..input.clone() };
    if let Some(refusal) = preflight::refusal(&given) {
        return Screening::Refused(refusal);
    }
    let Some(pod) = input.pod else {
        return Screening::Busy("the pod is not known yet".into());
    };
    let asked = match preflight::asked(&given) {
        Ok(asked) => asked.with_overcommit(overcommit_percent),
        Err(refusal) => return Screening::Refused(refusal),
    };
    let candidates: Vec<Candidate<'_>> = input.nodes.iter().map(candidate).collect();
    let target = match given.target {
        Some(node) => {
            let objection = placement::objection(pod, &asked, &candidate(node), &candidates);
            if let Some(why) = objection {
                return no_node(format!(
                    "{why}; write another targetNode, or change what the pod asks of its node"
                ));
            }
            node
        }
        None => {
            let choice = placement::choose(pod, &asked, &candidates);
            match choice.order.first().and_then(|name| find(name)) {
                Some(node) => node,
                None => return no_node(nobody(&choice)),
            }
        }
    };
    for node in [input.source(), Some(target)].into_iter().flatten() {
        if let Some(busy) = is_busy(node, active) {
            return Screening::Busy(busy);
        }
    }
    Screening::Ready { target: target.name.clone(), given: given.target.is_some() }
}

/// Whether the pods of the nodes matter to the target.
pub fn looks_at_pods(input: &Input<'_>) -> bool {
    let to_the_named_node =
        |pod| preflight::asked(input).is_ok_and(|asked| placement::looks_at_pods(pod, &asked));
    input.migration.spec.target_node.is_none() || input.pod.is_some_and(to_the_named_node)
}

fn no_node(message: String) -> Screening {
    Screening::Refused(Refusal { reason: reasons::NO_NODE_FITS, message })
}

/// Swarm's text where its filters left no node, then what speaks against each node.
fn nobody(choice: &Choice) -> String {
    const SHOWN: usize = 5;
    // Swarm's sentences do not name the node; Kubernetes' do.
    let against = choice.against().map(|(name, why)| match why.starts_with(name) {
        true => why.to_owned(),
        false => format!("{name}: {why}"),
    });
    let mut parts: Vec<String> = against.collect();
    if parts.is_empty() {
        return "the cluster has no other node; add one, or wait until one is Ready".into();
    }
    let more = parts.len().saturating_sub(SHOWN);
    parts.truncate(SHOWN);
    if more > 0 {
        parts.push(format!("and {more} more"));
    }
    let swarm = choice.error.as_ref().map(|error| format!("{error}; ")).unwrap_or_default();
    format!(
        "no node can take the pod: {swarm}{}; mend one of them, or name it in targetNode",
        parts.join(", ")
    )
}

fn is_busy(node: &NodeView, active: &BTreeMap<String, usize>) -> Option<String> {
    let limit = usize::try_from(node.agent.as_ref()?.spec.max_parallel_migrations).unwrap_or(0);
    let now = active.get(&node.name).copied().unwrap_or(0);
    (now >= limit).then(|| {
        format!("{} takes part in {now} migrations already (maxParallelMigrations)", node.name)
    })
}

/// What becomes of address and connections, once the agents have answered.
pub fn network(input: &Input<'_>) -> Option<NetworkChoice> {
    preflight::choose_network(input)
}

/// Everything that cannot be moved; empty when the pod may go.
pub fn judge(input: &Input<'_>) -> Vec<Violation> {
    preflight::violations(input)
}

/// Status of a Migration that waits for its turn, or for its agents' answers.
pub fn waiting(
    migration: &Migration,
    step: Step,
    message: &str,
    now: Timestamp,
) -> MigrationStatus {
    let mut draft = started(migration, now);
    draft.step(step).waiting(reasons::IN_PROGRESS, message);
    draft.done()
}

fn started(migration: &Migration, now: Timestamp) -> Draft {
    let mut draft = Draft::of(migration, now);
    draft.with(|status| {
        status.start_time.get_or_insert_with(|| Time(whole_seconds(now)));
    });
    draft
}

/// What a refusal knows besides its reason.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found<'a> {
    /// What cannot be moved.
    pub violations: &'a [Violation],
    /// Bytes that would move, where they are known.
    pub bytes: Option<u64>,
}

/// Status of a Migration that cannot be carried out.
pub fn refused(
    migration: &Migration,
    refusal: &Refusal,
    found: Found<'_>,
    now: Timestamp,
) -> MigrationStatus {
    let mut draft = started(migration, now);
    draft.set(c::ADMITTED, ConditionStatus::False, refusal.reason, &refusal.message).end(
        Step::Failed,
        false,
        refusal.reason,
        &refusal.message,
    );
    draft.with(|status| tell(status, migration, found));
    draft.done()
}

/// Status of a Migration whose pod has what cannot be moved.
pub fn violated(
    migration: &Migration,
    target: &str,
    found: Found<'_>,
    now: Timestamp,
) -> MigrationStatus {
    let mut draft = started(migration, now);
    let message = preflight::summary(found.violations);
    draft
        .set(c::ADMITTED, ConditionStatus::False, reasons::PREFLIGHT_FAILED, &message)
        .end(Step::Failed, false, reasons::PREFLIGHT_FAILED, &message)
        .with(|status| {
            status.target = Some(PodRef { node: target.to_owned(), ..PodRef::default() });
            tell(status, migration, found);
        });
    draft.done()
}

fn tell(status: &mut MigrationStatus, migration: &Migration, found: Found<'_>) {
    let told = preflight::most_telling(found.violations, MAX_VIOLATIONS);
    status.violations = told.into_iter().map(Violation::to_status).collect();
    status.forecast = found.bytes.map(|bytes| forecast(migration, bytes));
}

/// Status of a Migration that was given up before it was admitted.
pub fn given_up(
    migration: &Migration,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> MigrationStatus {
    let mut draft = started(migration, now);
    draft.end(Step::Failed, false, reason, message);
    draft.done()
}

/// Bytes per second that a forecast counts with where no limit says less: what one core dumps and
/// restores, compressed, on a slow machine.
const FORECAST_RATE: u64 = 300 << 20;
/// What every freeze costs, whatever the size.
const FORECAST_FIXED: Duration = Duration::from_millis(150);

/// How long the freeze will be, roughly.
pub fn forecast(migration: &Migration, bytes: u64) -> Forecast {
    let limit = migration.spec.bandwidth_limit().ok().flatten().unwrap_or(FORECAST_RATE);
    let rate = limit.clamp(1, FORECAST_RATE);
    let millis = u128::from(bytes) * 1000 / u128::from(rate);
    let freeze = FORECAST_FIXED + Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX));
    Forecast { bytes: i64::try_from(bytes).unwrap_or(i64::MAX), freeze: duration::format(freeze) }
}

/// What was decided at admission.
#[derive(Clone, Debug, PartialEq)]
pub struct Admitted<'a> {
    /// The source pod.
    pub pod: &'a Pod,
    /// Id of its sandbox.
    pub sandbox: &'a str,
    /// Target node.
    pub target: &'a str,
    /// The Migration names it.
    pub given: bool,
    /// Bytes that will move.
    pub bytes: u64,
    /// What becomes of address and connections.
    pub network: &'a NetworkChoice,
    /// Why the API server cannot say whether it would take the pod that is made again after the commit.
    pub unknown: Option<&'a str>,
    /// What could not be counted, so that more than those bytes may move.
    pub incomplete: &'a [String],
}

/// The pod's address, and its further ones.
fn addresses(pod: &Pod) -> (Option<String>, Vec<String>) {
    let Some(status) = &pod.status else { return (None, vec![]) };
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.clone());
    let others = all.filter(|ip| status.pod_ip.as_ref() != Some(ip)).collect();
    (status.pod_ip.clone(), others)
}

/// Status of a Migration whose checks have passed, or with `dryRun` its end.
pub fn admitted(migration: &Migration, admitted: &Admitted<'_>, now: Timestamp) -> MigrationStatus {
    let Admitted { pod, sandbox, target, given, bytes, network, unknown, incomplete } = *admitted;
    let source_node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
    let forecast = forecast(migration, bytes);
    let text = duration::parse(&forecast.freeze).map(for_people).unwrap_or_default();
    let why = match given {
        true => (reasons::TARGET_NODE_GIVEN, format!("targetNode is {target}")),
        false => {
            (reasons::TARGET_NODE_CHOSEN, format!("{target} is the best of the nodes that fit"))
        }
    };
    let passed = match unknown {
        None => "all checks passed".to_owned(),
        Some(why) => format!(
            "all checks passed but one: whether the API server takes the pod when it is made again after the commit is not known ({why})"
        ),
    };
    let doubt = match incomplete {
        [] => String::new(),
        _ => format!("; the forecast may be too low: {}", incomplete.join(", ")),
    };
    let uid = migration.metadata.uid.as_deref().unwrap_or_default();
    let cold = migration.spec.mode == Mode::Cold;
    let mut draft = started(migration, now);
    draft
        .set(c::ADMITTED, ConditionStatus::True, reasons::CHECKS_PASSED, passed + &doubt)
        .set(c::SCHEDULED, ConditionStatus::True, why.0, why.1)
        .with(|status| {
            status.source = Some(PodRef {
                node: source_node,
                pod_name: pod.metadata.name.clone().unwrap_or_default(),
                pod_uid: pod.metadata.uid.clone().unwrap_or_default(),
            });
            status.source_sandbox = Some(sandbox.to_owned()).filter(|id| !id.is_empty());
            status.target = Some(PodRef {
                node: target.to_owned(),
                pod_name: target_pod::target_name(pod, uid),
                pod_uid: String::new(),
            });
            status.hand_over = Some(match is_exclusive(pod) {
                true => HandOver::Sequential,
                false => HandOver::Overlap,
            });
            status.trial = is_exclusive(pod).then(|| {
                let claims = claims(pod);
                match claims.as_slice() {
                    _ if cold => "before the pod ends its sandbox and its first container are tried on the target; nothing is started there".to_owned(),
                    [] => "the pod is restored on trial before the commit, with all of its files".to_owned(),
                    names => format!("the pod is restored on trial before the commit; files of the same names and sizes without content stand in for volume {}", names.join(", ")),
                }
            });
            status.chosen_mode = Some(if cold { Mode::Cold } else { Mode::StopAndCopy });
            status.chosen_network = Some(network.network);
            let mode = match cold {
                true => "Cold is asked for: the pod is ended and starts afresh with its files",
                false => "StopAndCopy is the mode of this version",
            };
            let message = format!("{mode}; {}", network.why);
            status.choice_message = Some(c::bounded(&message, MAX_CHOICE_MESSAGE));
            if network.network == Network::Preserve {
                (status.address, status.other_addresses) = addresses(pod);
            }
            status.forecast = Some(forecast);
            status.violations.clear();
        });
    if migration.spec.dry_run {
        let message = match cold {
            true => format!(
                "every check passed; the pod would end, and start afresh on {target}{doubt}"
            ),
            false => format!(
                "every check passed; moving to {target} would freeze the pod for about {text}{doubt}"
            ),
        };
        draft.end(Step::Succeeded, true, reasons::DRY_RUN, message).with(|status| {
            // Nothing is made: only the node stands.
            if let Some(target) = &mut status.target {
                target.pod_name.clear();
            }
        });
    } else {
        draft
            .set(
                c::COPIED,
                ConditionStatus::True,
                reasons::NOTHING_TO_COPY,
                match cold {
                    true => "Cold copies files after the pod has ended",
                    false => "StopAndCopy copies everything while frozen",
                },
            )
            .step(Step::PreparingTarget)
            .waiting(reasons::IN_PROGRESS, "the target pod is made");
    }
    draft.done()
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
