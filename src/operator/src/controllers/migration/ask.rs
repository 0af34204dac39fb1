//! What the API server would say of the pods that a migration makes, asked without storing anything.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use transship_api::{Migration, Mode};
use transship_core::migration::state::claimed_by;
use transship_core::preflight::TargetAnswer;
use transship_core::sequential_pod::{is_exclusive, tried_pods};
use transship_core::target_pod::{self, TargetFor};

use crate::context::Context;

/// How long the API server, with its webhooks, may take to say what it thinks of a pod.
const TRY_LIMIT: Duration = Duration::from_secs(5);

/// What it says.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    /// Of those pods of which it can say something; none where that is none.
    pub known: Option<TargetAnswer>,
    /// Why it cannot say whether it would take the pod that is made after the commit, when there is no
    /// way back.
    pub unknown: Option<String>,
}

/// Asks whether it would take the target pod as it is sent; in the sequential order also that which is made
/// again after the commit.
pub async fn about_target(
    migration: &Migration,
    pod: &Pod,
    node: &str,
    context: &Context,
) -> Answer {
    let namespace = migration.namespace().unwrap_or_default();
    let uid = migration.uid().unwrap_or_default();
    if claimed_by(pod, &uid) {
        // The pod of a former look may exist already, and would count twice.
        return Answer::default();
    }
    let name = migration.name_any();
    let target = TargetFor {
        migration_namespace: &namespace,
        migration_name: &name,
        migration_uid: &uid,
        node,
        preserve_address: false,
        starts_afresh: migration.spec.mode == Mode::Cold,
    };
    let (first, again) = match is_exclusive(pod) {
        true => match tried_pods(pod, &target) {
            Ok([trial, again]) => (trial, Some(again)),
            Err(_) => return Answer::default(),
        },
        false => match target_pod::target_pod(pod, &target) {
            Ok(target) => (target, None),
            Err(_) => return Answer::default(),
        },
    };
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
    // Nobody sees them, whatever their labels: a dry run is neither stored nor watched.
    let (first, again) = tokio::join!(ask(&first, &pods), async {
        match &again {
            Some(again) => Some(ask(again, &pods).await),
            None => None,
        }
    });
    if let Err(why) = &first {
        tracing::info!(node, why, "the target pod could not be tried");
    }
    sum(first, again)
}

fn sum(first: Result<TargetAnswer, String>, again: Option<Result<TargetAnswer, String>>) -> Answer {
    let (again, unknown) = match again {
        Some(Ok(again)) => (Some(again), None),
        Some(Err(why)) => (None, Some(why)),
        None => (None, None),
    };
    Answer { known: TargetAnswer::of_all(first.ok().into_iter().chain(again)), unknown }
}

/// What it says of this pod, or why it cannot.
async fn ask(wanted: &Pod, pods: &Api<Pod>) -> Result<TargetAnswer, String> {
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let asked = tokio::time::timeout(TRY_LIMIT, pods.create(&dry_run, wanted));
    match asked.await {
        Ok(Ok(stored)) => {
            Ok(TargetAnswer::Taken(target_pod::changes_by_admission(wanted, &stored)))
        }
        Ok(Err(error)) => refusal(error),
        Err(_) => Err(format!("it did not answer within {} s", TRY_LIMIT.as_secs())),
    }
}

/// Whether an error says no to a dry run as such, and nothing of what was asked: some webhook cannot be called
/// without effects, by the API server's own words or by the webhook's.
pub fn no_trial(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    match denial(&status.message) {
        Some(why) => is_of_dry_runs(why),
        None => status.code == 400 && status.message.contains("does not support dry run"),
    }
}

/// Whether an error is a refusal. Webhooks deny with whatever code they choose, and with 400 without one, as
/// the API server does for those that do not know dry runs: then their words tell.
fn refusal(error: kube::Error) -> Result<TargetAnswer, String> {
    let untried = no_trial(&error);
    match error {
        kube::Error::Api(status) => {
            let message = status.message.clone();
            let denied = denial(&message).is_some() || matches!(status.code, 403 | 422);
            let refused = denied && !untried;
            if refused { Ok(TargetAnswer::Refused(message)) } else { Err(message) }
        }
        error => Err(error.to_string()),
    }
}

/// What webhooks and admission policies say behind the words with which they deny.
fn denial(message: &str) -> Option<&str> {
    let after = |words: &str| message.split_once(words).map(|(_, why)| why);
    after("denied the request").or_else(|| after("denied request"))
}

/// Whether it is said that dry runs (`dry run`, `dry-run`, `dryRun`) are not done. What is denied is often named,
/// and a longer name that holds the word, or one in quotes or brackets, is no word of the webhook's.
fn is_of_dry_runs(why: &str) -> bool {
    let why = why.to_ascii_lowercase();
    let words: Vec<&str> = why
        .split_whitespace()
        .map(|word| word.trim_matches(['.', ',', ';', ':', '!', '(', ')']))
        .collect();
    let is_one = |word: &&str| matches!(*word, "dry-run" | "dry-runs" | "dryrun" | "dryruns");
    let are_two = |two: &[&str]| two[0] == "dry" && matches!(two[1], "run" | "runs");
    let not_done = ["support", "ignor", "not allowed for dry"];
    (words.iter().any(is_one) || words.windows(2).any(are_two))
        && not_done.iter().any(|words| why.contains(*words))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case(403, "pods \"web-0\" is forbidden: exceeded quota: q", true)]
    #[case(422, "Pod \"web-0\" is invalid: spec", true)]
    #[case(400, "admission webhook \"a.b\" denied the request: no team", true)]
    #[case(400, "admission webhook \"a.b\" denied the request without explanation", true)]
    #[case(503, "admission webhook \"a.b\" denied the request: later", true)]
    #[case(413, "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: too large", true)]
    #[case(400, "admission webhook \"a.b\" does not support dry run", false)]
    #[case(403, "admission webhook \"a.b\" denied the request: Dry-run is not supported", false)]
    #[case(400, "admission webhook \"a.b\" denied the request: dryRun requests are ignored", false)]
    #[case(403, "pods \"dry-run-0\" is forbidden: exceeded quota: q", true)]
    #[case(500, "Internal error occurred: failed calling webhook \"a.b\": no endpoints", false)]
    fn a_denial_is_a_refusal_whatever_its_code(
        #[case] code: u16,
        #[case] message: &str,
        #[case] refused: bool,
    ) {
        let status = json!({"status": "Failure", "code": code, "message": message});
        let error = kube::Error::Api(Box::new(serde_json::from_value(status).unwrap()));
        let expected = match refused {
            true => Ok(TargetAnswer::Refused(message.to_owned())),
            false => Err(message.to_owned()),
        };
        assert_eq!(refusal(error), expected);
    }

    #[rstest]
    #[case(400, "admission webhook \"a.b\" does not support dry run", true)]
    #[case(403, "admission webhook \"a.b\" does not support dry run", false)]
    #[case(403, "admission webhook \"a.b\" denied the request: dry-run is not supported", true)]
    #[case(400, "admission webhook \"a.b\" denied the request: dryRun requests are ignored", true)]
    #[case(400, "admission webhook \"a.b\" denied the request: no team", false)]
    #[case(403, "pods \"dry-run-0\" is forbidden: exceeded quota: q", false)]
    #[case(400, "not like this", false)]
    fn a_cluster_in_which_nothing_can_be_tried_is_told_from_a_refusal(
        #[case] code: u16,
        #[case] message: &str,
        #[case] untried: bool,
    ) {
        let status = json!({"status": "Failure", "code": code, "message": message});
        let error = kube::Error::Api(Box::new(serde_json::from_value(status).unwrap()));
        assert_eq!(no_trial(&error), untried);
    }

    #[rstest]
    #[case("it has no support for dry runs.", true)]
    #[case("unsupported: dryRun", true)]
    #[case("a claim is not allowed for dry runs", true)]
    #[case("image cloudfoundry/run:full-cnb is not supported", false)]
    #[case("laundry-runner, foundry/runtime: not supported", false)]
    #[case("pod dry-run-0 has an unsupported label", false)]
    #[case("[psp-dryrun-labels] an unsupported label", false)]
    #[case("[dry-run] an unsupported label", false)]
    #[case("image \"dry-run\" is not supported", false)]
    #[case("no dry run before the label team is set", false)]
    fn a_name_is_no_word_about_dry_runs(#[case] why: &str, #[case] is_one: bool) {
        assert_eq!(is_of_dry_runs(why), is_one);
    }

    #[test]
    fn what_is_not_known_of_the_pod_that_is_made_again_is_told() {
        let taken = || Ok(TargetAnswer::Taken(vec![]));
        let unknown = || Err("no endpoints".to_owned());
        let of_both = sum(taken(), Some(unknown()));
        assert_eq!(of_both.known, Some(TargetAnswer::Taken(vec![])));
        assert_eq!(of_both.unknown.as_deref(), Some("no endpoints"));
        assert_eq!(sum(unknown(), None), Answer::default(), "there is a way back");
        let refused = Ok(TargetAnswer::Refused("no".into()));
        let known = sum(unknown(), Some(refused.clone()));
        assert_eq!(known, Answer { known: refused.ok(), unknown: None });
    }
}
