//! One pod: everything that stands in its way, and for each other node whether it would do. Asks by
//! one Migration with `dryRun` for each node, and deletes them whatever the answers.

use std::time::Duration;

use anyhow::Result;
use futures::future::join_all;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client, ResourceExt};
use transship_api::{Migration, MigrationSpec, MigrationStatus, Step, Violation, conditions};

use super::Args;
use crate::connect::explain;
use crate::{Outcome, progress, table};

/// The most nodes that are asked about.
const MAX_NODES: usize = 16;

/// The answer about one node.
#[derive(Debug, Clone, Default)]
struct Answer {
    node: String,
    status: MigrationStatus,
}

impl Answer {
    fn is_yes(&self) -> bool {
        self.status.step == Some(Step::Succeeded)
    }

    fn is_final(&self) -> bool {
        self.status.step.is_some_and(Step::is_final)
    }

    /// Reason and message of the refusal, or of the waiting.
    fn reason(&self) -> (String, String) {
        let succeeded = conditions::find(&self.status.conditions, conditions::SUCCEEDED);
        succeeded.map(|c| (c.reason.clone(), c.message.clone())).unwrap_or_default()
    }
}

/// Runs the command.
pub async fn run(args: &Args, client: Client, namespace: &str, pod: &str) -> Result<Outcome> {
    let (nodes, left_out) = candidates(args, &client, namespace, pod).await;
    let api: Api<Migration> = Api::namespaced(client, namespace);
    let questions = nodes.iter().map(|node| ask(&api, pod, node.as_deref(), args.timeout));
    let answers: Vec<Answer> = tokio::select! {
        answers = join_all(questions) => answers.into_iter().collect::<Result<_>>()?,
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted; Migrations named doctor-* may be left"),
    };
    print!("{}", show(&format!("{namespace}/{pod}"), &answers));
    if left_out > 0 {
        eprintln!("{left_out} more nodes were not asked about; name one with --to.");
    }
    Ok(match answers.iter().any(Answer::is_yes) {
        true => Outcome::Done,
        false if answers.iter().all(Answer::is_final) => Outcome::Failed,
        false => Outcome::TimedOut,
    })
}

/// The nodes to ask about, and how many were left out. Where nodes cannot be listed, or there is no
/// other, the operator chooses.
async fn candidates(
    args: &Args,
    client: &Client,
    namespace: &str,
    pod: &str,
) -> (Vec<Option<String>>, usize) {
    if let Some(node) = &args.to {
        return (vec![Some(node.rsplit('/').next().unwrap_or(node).to_owned())], 0);
    }
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(client.clone(), namespace);
    let own = match pods.get_opt(pod).await {
        Ok(Some(pod)) => pod.spec.and_then(|spec| spec.node_name),
        // It has no answer that depends on a node.
        _ => return (vec![None], 0),
    };
    let others: Vec<Option<String>> = match super::nodes(client).await {
        Ok(nodes) => nodes
            .into_iter()
            .filter(|node| node.core.is_some() && Some(&node.name) != own.as_ref())
            .map(|node| Some(node.name))
            .collect(),
        Err(_) => Vec::new(),
    };
    match others.len() {
        0 => (vec![None], 0),
        many => (others.into_iter().take(MAX_NODES).collect(), many.saturating_sub(MAX_NODES)),
    }
}

/// Asks about one node, and takes the question back.
async fn ask(
    api: &Api<Migration>,
    pod: &str,
    node: Option<&str>,
    patience: Duration,
) -> Result<Answer> {
    let mut question = Migration::new("", MigrationSpec::for_pod(pod));
    let head: String = pod.chars().take(200).collect();
    question.metadata.name = None;
    question.metadata.generate_name = Some(format!("doctor-{head}-"));
    question.spec.dry_run = true;
    question.spec.target_node = node.map(str::to_owned);
    let created = api
        .create(&PostParams::default(), &question)
        .await
        .map_err(|error| explain(error, "install Transship first, see its README"))?;
    let name = created.name_any();
    let ended = progress::end_of(api, &name, patience).await;
    let last = match ended {
        Ok(Some(migration)) => Ok(migration),
        // Not answered in time: what it waits for is worth telling.
        Ok(None) => api.get(&name).await.map_err(|error| explain(error, "it was deleted")),
        Err(error) => Err(error),
    };
    if let Err(error) = api.delete(&name, &DeleteParams::default()).await {
        eprintln!("{name} could not be deleted: {}", explain(error, "it is gone"));
    }
    Ok(Answer {
        node: node.unwrap_or_default().to_owned(),
        status: last?.status.unwrap_or_default(),
    })
}

fn show(pod: &str, answers: &[Answer]) -> String {
    let mut text = String::new();
    let fit: Vec<&str> = answers
        .iter()
        .filter(|answer| answer.is_yes())
        .filter_map(|answer| answer.status.target.as_ref().map(|target| target.node.as_str()))
        .collect();
    text += &match fit.as_slice() {
        [] => format!("Pod {pod} cannot be moved.\n"),
        nodes => format!("Pod {pod} can be moved to {}.\n", nodes.join(", ")),
    };
    if let Some(forecast) = answers.iter().find_map(|answer| answer.status.forecast.as_ref()) {
        text += &format!(
            "It would carry {} MiB and stand still for about {}.\n",
            forecast.bytes >> 20,
            forecast.freeze
        );
    }
    for (choice, nodes) in choices(answers) {
        text += &format!("To {}: {choice}.\n", nodes.join(", "));
    }
    let common = common(answers);
    let same_reason = answers.iter().all(|a| !a.is_yes() && a.reason() == answers[0].reason());
    let (reason, message) = answers.first().map(Answer::reason).unwrap_or_default();
    if same_reason && reason != conditions::reasons::PREFLIGHT_FAILED {
        text += &format!("\n{reason}: {message}\n");
    }
    if !common.is_empty() {
        text += "\nIn its way, wherever it goes\n";
        text += &common.iter().map(describe).collect::<String>();
    }
    let rows: Vec<Vec<String>> = answers
        .iter()
        .filter(|answer| !answer.node.is_empty())
        .map(|answer| {
            let state = match (answer.is_yes(), answer.is_final()) {
                (true, _) => "yes",
                (false, true) => "no",
                (false, false) => "?",
            };
            vec![answer.node.clone(), state.to_owned(), why(answer, &common, same_reason)]
        })
        .collect();
    if !rows.is_empty() {
        text += "\n";
        text += &table::format(&["NODE", "FITS", "WHY NOT"], &rows);
    }
    text
}

/// Why mode and network were chosen, and for which of the nodes that fit.
fn choices(answers: &[Answer]) -> Vec<(&str, Vec<&str>)> {
    let mut found: Vec<(&str, Vec<&str>)> = Vec::new();
    for Answer { status, .. } in answers.iter().filter(|answer| answer.is_yes()) {
        let (Some(choice), Some(target)) = (&status.choice_message, &status.target) else {
            continue;
        };
        match found.iter_mut().find(|(before, _)| *before == choice.as_str()) {
            Some((_, nodes)) => nodes.push(target.node.as_str()),
            None => found.push((choice.as_str(), vec![target.node.as_str()])),
        }
    }
    found
}

/// Violations that every answer has.
fn common(answers: &[Answer]) -> Vec<Violation> {
    let Some(first) = answers.first() else { return Vec::new() };
    let everywhere =
        |violation: &&Violation| answers.iter().all(|a| a.status.violations.contains(violation));
    first.status.violations.iter().filter(everywhere).cloned().collect()
}

/// What speaks against one node alone.
fn why(answer: &Answer, common: &[Violation], same_reason: bool) -> String {
    if answer.is_yes() {
        return "-".into();
    }
    let own = answer.status.violations.iter().filter(|v| !common.contains(v));
    let own: Vec<String> =
        own.map(|v| format!("{}: {}; {}", v.check, v.message, v.remedy)).collect();
    if !own.is_empty() {
        return own.join(" | ");
    }
    let (reason, message) = answer.reason();
    match reason.as_str() {
        conditions::reasons::PREFLIGHT_FAILED => "what is in the pod's way".into(),
        _ if same_reason => "see above".into(),
        reason => format!("{reason}: {message}"),
    }
}

fn describe(violation: &Violation) -> String {
    let place = match violation.container.as_str() {
        "" => String::new(),
        container => format!(" (container {container})"),
    };
    format!("  {}{place}: {}\n      {}\n", violation.check, violation.message, violation.remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(node: &str, step: &str, reason: &str, violations: &[(&str, &str)]) -> Answer {
        let violations: Vec<_> = violations
            .iter()
            .map(|(check, message)| {
                json!({"check": check, "container": "web", "message": message, "remedy": "mend it"})
            })
            .collect();
        let status = serde_json::from_value(json!({
            "step": step, "target": {"node": node}, "violations": violations,
            "forecast": {"bytes": 268435456, "freeze": "1s"},
            "conditions": [{"type": "Succeeded", "status": "False", "reason": reason,
                "message": format!("because of {reason}"),
                "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        }))
        .unwrap();
        Answer { node: node.into(), status }
    }

    #[test]
    fn what_is_in_the_pods_way_is_told_once_and_what_is_a_nodes_beside_it() {
        let text = show(
            "shop/web",
            &[
                answer("b", "Failed", "PreflightFailed", &[("IoUring", "a ring")]),
                answer(
                    "c",
                    "Failed",
                    "PreflightFailed",
                    &[("IoUring", "a ring"), ("Image", "not there")],
                ),
                answer("d", "Failed", "TargetNotReady", &[("IoUring", "a ring")]),
            ],
        );
        assert_eq!(
            text,
            "Pod shop/web cannot be moved.\n\
             It would carry 256 MiB and stand still for about 1s.\n\
             \n\
             In its way, wherever it goes\n\
             \x20 IoUring (container web): a ring\n\
             \x20     mend it\n\
             \n\
             NODE   FITS   WHY NOT\n\
             b      no     what is in the pod's way\n\
             c      no     Image: not there; mend it\n\
             d      no     TargetNotReady: because of TargetNotReady\n"
        );
    }

    #[test]
    fn a_pod_that_fits_somewhere_says_where() {
        let chosen = |node, choice: &str| {
            let mut answer = answer(node, "Succeeded", "DryRun", &[]);
            answer.status.choice_message = Some(choice.to_owned());
            answer
        };
        let one = [
            answer("b", "Succeeded", "DryRun", &[]),
            answer("c", "Failed", "PreflightFailed", &[("Image", "not there")]),
        ];
        let text = show("shop/web", &one);
        assert!(!text.contains("\nTo "), "{text}");
        let some = [chosen("d", "kept"), chosen("e", "closed"), chosen("f", "kept")];
        let all = show("shop/web", &some);
        assert!(all.contains("\nTo d, f: kept.\nTo e: closed.\n"), "{all}");
        assert!(text.starts_with("Pod shop/web can be moved to b.\n"), "{text}");
        assert!(text.contains("b      yes    -\n"), "{text}");
        assert!(text.contains("c      no     Image: not there; mend it\n"), "{text}");
    }

    #[test]
    fn a_refusal_for_all_is_told_once() {
        let refused = |node| answer(node, "Failed", "OwnerNotSupported", &[]);
        let text = show("shop/web", &[refused("b"), refused("c")]);
        assert_eq!(text.matches("because of OwnerNotSupported").count(), 1, "{text}");
        assert!(text.contains("b      no     see above\n"), "{text}");
    }
}
