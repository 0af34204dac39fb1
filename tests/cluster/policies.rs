//! Who may write what: RBAC and the chart's admission policies, tried as the users they are about.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use transship_tests::cluster::{Cluster, migration};

const NAMESPACE: &str = "transship-system";
const OPERATOR: &str = "--as=system:serviceaccount:transship-system:transship-operator";
const AGENT: &str = "--as=system:serviceaccount:transship-system:transship-agent";
/// What the API server finds in a token that is bound to a node or to a pod on it.
const ON_NODE_A: &str = "--as-user-extra=authentication.kubernetes.io/node-name=node-a";
/// No rule of RBAC stops this one.
const ADMIN: &str = "--as-group=system:masters";

/// One request: what it is, who makes it, how, and the words of a refusal (none: it is accepted).
type Case<'a> = (&'a str, &'a [&'a str], &'a [&'a str], Option<&'a str>);

fn check(cluster: &Cluster, cases: &[Case]) -> Result<()> {
    for (what, user, request, refusal) in cases {
        let output = cluster.try_kubectl(&[*request, *user].concat())?;
        let answer = String::from_utf8_lossy(&output.stderr).into_owned();
        match refusal {
            None => ensure!(output.status.success(), "{what}: {answer}"),
            Some(words) => {
                ensure!(!output.status.success(), "{what} was accepted");
                ensure!(answer.contains(words), "{what}: {answer:?} does not say {words:?}");
            }
        }
    }
    Ok(())
}

fn create(cluster: &Cluster, user: &[&str], object: &Value) -> Result<Result<(), String>> {
    let file = std::env::temp_dir().join(format!("{}-object.json", cluster.namespace));
    std::fs::write(&file, object.to_string())?;
    let path = file.to_string_lossy();
    let output = cluster.try_kubectl(&[&["create", "-f", &path], user].concat())?;
    Ok(if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    })
}

#[test]
fn an_agent_writes_only_what_belongs_to_its_node() -> Result<()> {
    let cluster = Cluster::with_namespace("agent-policy")?;
    let agent: &[&str] = &[AGENT, ON_NODE_A];
    let status = |node| {
        let patch = r#"--patch={"status":{"failureCount":0}}"#;
        ["patch", "nodes.transship.dev", node, "--subresource=status", "--type=merge", patch]
    };
    // To create is refused before it is known that the Lease exists; kubectl's patch would read it.
    let lead = std::env::temp_dir().join(format!("transship-lead-{}.json", std::process::id()));
    let manifest = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "transship-operator", "namespace": NAMESPACE},
    });
    std::fs::write(&lead, manifest.to_string())?;
    let lead = lead.to_string_lossy();
    check(
        &cluster,
        &[
            ("its status", agent, &status("node-a"), None),
            ("another's status", agent, &status("node-b"), Some("its own node only")),
            ("a token without a node", &[AGENT], &status("node-a"), Some("must name its node")),
            (
                "its spec",
                agent,
                &[
                    "patch",
                    "nodes.transship.dev",
                    "node-a",
                    "--type=merge",
                    "--patch={\"spec\":{\"unschedulable\":true}}",
                ],
                Some("forbidden"),
            ),
            (
                "its Node's end",
                agent,
                &["delete", "nodes.transship.dev", "node-a"],
                Some("forbidden"),
            ),
            (
                "a decision",
                agent,
                &[
                    "patch",
                    "migration",
                    "any",
                    "--subresource=status",
                    "--type=merge",
                    "--patch={\"status\":{\"decision\":\"Commit\"}}",
                ],
                Some("forbidden"),
            ),
            ("secrets", agent, &["get", "secrets", "--namespace", NAMESPACE], Some("forbidden")),
            (
                "which installation there is",
                agent,
                &["get", "serviceaccount", "transship-operator", "--namespace", NAMESPACE],
                None,
            ),
            (
                "other accounts",
                agent,
                &["get", "serviceaccounts", "--namespace", NAMESPACE],
                Some("forbidden"),
            ),
            (
                "the lead",
                agent,
                &["create", "--namespace", NAMESPACE, "-f", &lead],
                Some("its own node only"),
            ),
        ],
    )?;
    std::fs::remove_file(&*lead)?;

    // A token bound to another node, or to none, would let it write there.
    for (node, seconds, refusal) in [
        (Some("node-a"), 3600, None),
        (Some("node-b"), 3600, Some("bound to its own Node")),
        (None, 3600, Some("bound to its own Node")),
        (Some("node-a"), 7200, Some("at most an hour")),
    ] {
        let bound = match node {
            Some(name) => {
                let uid = cluster.get("node", name)?["metadata"]["uid"].clone();
                json!({"kind": "Node", "apiVersion": "v1", "name": name, "uid": uid})
            }
            None => Value::Null,
        };
        let request = json!({
            "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
            "spec": {"audiences": [], "expirationSeconds": seconds, "boundObjectRef": bound},
        });
        let file = std::env::temp_dir().join("transship-token-request.json");
        std::fs::write(&file, request.to_string())?;
        let raw =
            format!("--raw=/api/v1/namespaces/{NAMESPACE}/serviceaccounts/transship-agent/token");
        let path = file.to_string_lossy();
        check(&cluster, &[("a token", agent, &["create", &raw, "-f", &path], refusal)])?;
    }
    Ok(())
}

#[test]
fn status_and_finalizers_are_the_operators_alone() -> Result<()> {
    let cluster = Cluster::with_namespace("kinds-policy")?;
    cluster.apply(&migration("watched", "nothing-here", "node-b"))?;
    let admin: &[&str] = &["--as=mallory", ADMIN];
    let finalizer = r#"--patch={"metadata":{"finalizers":["transship.dev/checkpoint-data"]}}"#;
    // The operator takes the finalizer off a Migration that has ended; a Checkpoint is left alone.
    cluster.apply(
        "apiVersion: transship.dev/v1alpha1\nkind: Checkpoint\nmetadata: {name: kept}\nspec: {podName: x}\n",
    )?;
    let kept = ["patch", "checkpoint", "kept", "--type=merge"];
    let decide = |subject| ["patch", subject, "--subresource=status", "--type=merge"];
    check(
        &cluster,
        &[
            (
                "a decision",
                admin,
                &[
                    &decide("migration/watched")[..],
                    &[r#"--patch={"status":{"decision":"Commit"}}"#],
                ]
                .concat(),
                Some("status is written by Transship only"),
            ),
            (
                "a Node's status",
                admin,
                &[
                    &decide("nodes.transship.dev/node-a")[..],
                    &[r#"--patch={"status":{"kernel":"0"}}"#],
                ]
                .concat(),
                Some("status is written by Transship only"),
            ),
            (
                "the operator's finalizer",
                &[OPERATOR, ADMIN],
                &[&kept[..], &[finalizer]].concat(),
                None,
            ),
            (
                "a stripped finalizer",
                admin,
                &[&kept[..], &[r#"--patch={"metadata":{"finalizers":null}}"#]].concat(),
                Some("leave the finalizer"),
            ),
            ("a label of one's own", admin, &["label", "migration", "watched", "mine=1"], None),
            (
                "a forged hand-over",
                admin,
                &["label", "migration", "watched", "transship.dev/handover=uid"],
                Some("leave out the label transship.dev/handover"),
            ),
            (
                "a forged witness",
                admin,
                &["annotate", "migration", "watched", "transship.dev/witness=uid"],
                Some("leave out the annotation transship.dev/witness"),
            ),
            ("its deletion", admin, &["delete", "migration", "watched", "--wait=false"], None),
        ],
    )?;
    cluster.try_kubectl(&[
        "patch",
        "checkpoint",
        "kept",
        "--type=merge",
        OPERATOR,
        ADMIN,
        r#"--patch={"metadata":{"finalizers":null}}"#,
    ])?;
    Ok(())
}

#[test]
fn marks_on_pods_are_the_operators_alone_and_other_pods_are_free() -> Result<()> {
    let cluster = Cluster::with_namespace("pods-policy")?;
    let pod = |name: &str, metadata: Value, spec: Value| {
        // Never bound to a node: only the API server is asked.
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"schedulerName": "none", "containers": [{"name": "c", "image": "none"}]},
        });
        for (part, more) in [("metadata", metadata), ("spec", spec)] {
            for (key, value) in more.as_object().into_iter().flatten() {
                pod[part][key] = value.clone();
            }
        }
        pod
    };
    let prepare = json!([{"name": "transship.dev/prepare"}]);
    let resumed = json!([{"conditionType": "transship.dev/resumed"}]);
    let none = || json!({});
    for (what, forged) in [
        ("claim", pod("forged", json!({"annotations": {"transship.dev/claim": "u"}}), none())),
        ("lease", pod("forged", json!({"annotations": {"transship.dev/lease": "a"}}), none())),
        ("mover", pod("forged", json!({"annotations": {"transship.dev/moved-by": "u"}}), none())),
        (
            "hooks",
            pod("forged", json!({"annotations": {"transship.dev/post-start-hooks": "{}"}}), none()),
        ),
        ("label", pod("forged", json!({"labels": {"transship.dev/migration": "u"}}), none())),
        ("gate", pod("forged", none(), json!({"schedulingGates": prepare}))),
        ("readiness gate", pod("forged", none(), json!({"readinessGates": resumed}))),
    ] {
        let refusal = create(&cluster, &[], &forged)?.expect_err(what);
        ensure!(refusal.contains("Transship"), "{what}: {refusal}");
    }
    let free = json!({"annotations": {"transship.dev/post-start": "run"}, "labels": {"a": "b"}});
    let gates = json!({"schedulingGates": [{"name": "a.b/c"}], "readinessGates": [{"conditionType": "a.b/c"}]});
    for ordinary in
        [pod("plain", none(), none()), pod("free", free, none()), pod("gated", none(), gates)]
    {
        create(&cluster, &[], &ordinary)?.map_err(anyhow::Error::msg)?;
    }

    let target = pod(
        "target",
        json!({"labels": {"transship.dev/migration": "u"}}),
        json!({"schedulingGates": prepare, "readinessGates": resumed}),
    );
    create(&cluster, &[OPERATOR], &target)?.map_err(anyhow::Error::msg)?;
    let status = ["patch", "pod", "target", "--subresource=status", "--patch"];
    let resume = r#"{"status":{"conditions":[{"type":"transship.dev/resumed","status":"True"}]}}"#;
    let other = r#"{"status":{"conditions":[{"type":"a.b/c","status":"True"}]}}"#;
    check(
        &cluster,
        &[
            ("another label", &[], &["label", "pod", "target", "a=b"], None),
            (
                "the label's end",
                &[],
                &["label", "pod", "target", "transship.dev/migration-"],
                Some("leave the label"),
            ),
            (
                "the gate's end",
                &[],
                &[
                    "patch",
                    "pod",
                    "target",
                    "--type=merge",
                    r#"--patch={"spec":{"schedulingGates":null}}"#,
                ],
                Some("leave the scheduling gate"),
            ),
            (
                "a forged resumption",
                &[],
                &[&status[..], &[resume]].concat(),
                Some("leave the pod condition"),
            ),
            ("another condition", &[], &[&status[..], &[other]].concat(), None),
            ("the operator's resumption", &[OPERATOR], &[&status[..], &[resume]].concat(), None),
            ("a claim", &[OPERATOR], &["annotate", "pod", "plain", "transship.dev/claim=u"], None),
            (
                "the claim's end",
                &[],
                &["annotate", "pod", "plain", "transship.dev/claim-"],
                Some("leave the annotations"),
            ),
            (
                "its deletion",
                &[],
                &["delete", "pod", "target", "plain", "--wait=false", "--force"],
                None,
            ),
        ],
    )
}

/// RBAC cannot say which Secrets and which marks: the policy does.
#[test]
fn the_operator_marks_namespaces_and_stores_manifests_only() -> Result<()> {
    let cluster = Cluster::with_namespace("operator-policy")?;
    let operator: &[&str] = &[OPERATOR];
    let namespace = cluster.namespace.as_str();
    let label = |label| ["label", "namespace", namespace, "--overwrite", label];
    let annotate = |mark| ["annotate", "namespace", namespace, mark];
    let enforce = "pod-security.kubernetes.io/enforce=privileged";
    let secret = |name| ["create", "secret", "generic", name, "--from-literal=a=b"];
    cluster.kubectl(&secret("password"))?;
    check(
        &cluster,
        &[
            ("our label", operator, &label("transship.dev/handover=true"), None),
            ("its end", operator, &label("transship.dev/handover-"), None),
            ("another label", operator, &label(enforce), Some("sets no label")),
            ("our annotation", operator, &annotate("handover.transship.dev/uid=web-0"), None),
            ("another annotation", operator, &annotate("a=b"), Some("sets no annotation")),
            (
                "a namespace's end",
                operator,
                &["delete", "namespace", namespace, "--wait=false"],
                Some("forbidden"),
            ),
            ("a manifest", operator, &secret("transship-manifest-uid"), None),
            (
                "a manifest's end",
                operator,
                &["delete", "secret", "transship-manifest-uid", "--wait=false"],
                None,
            ),
            ("a Secret", operator, &secret("other"), Some("transship-manifest-*")),
            (
                "a Secret's end",
                operator,
                &["delete", "secret", "password", "--wait=false"],
                Some("transship-manifest-*"),
            ),
        ],
    )
}
