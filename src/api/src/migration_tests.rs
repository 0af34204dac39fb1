//! Tables of good and bad Migrations, against the rules that the API server evaluates.

use super::*;

type Edit = fn(&mut MigrationSpec);

fn migration(edit: impl FnOnce(&mut MigrationSpec)) -> Migration {
    let mut spec = MigrationSpec::for_pod("web-0");
    edit(&mut spec);
    Migration::new("web-0-to-node-b", spec)
}

fn with_status(edit: impl FnOnce(&mut MigrationStatus)) -> Migration {
    let mut status = MigrationStatus::default();
    edit(&mut status);
    Migration { status: Some(status), ..migration(|_| {}) }
}

fn micro(text: &str) -> MicroTime {
    MicroTime(text.parse().unwrap())
}

#[test]
fn good_specs_are_accepted() {
    let good: [(&str, Edit); 13] = [
        ("only a pod", |_| {}),
        ("a dotted name", |s| s.pod_name = "web-0.eu.example".into()),
        ("a target", |s| s.target_node = Some("node-b".into())),
        ("a target named by address", |s| s.target_node = Some("ip-10-0-0-1.ec2.internal".into())),
        ("two units", |s| s.timeout = "1m30s".into()),
        ("a fraction", |s| s.max_downtime = "0.5s".into()),
        ("hours", |s| s.timeout = "2h".into()),
        ("the longest that can be written", |s| s.timeout = "99999h99999h99999h99999h".into()),
        ("binary suffix", |s| s.bandwidth_limit = Some("200Mi".into())),
        ("decimal suffix", |s| s.bandwidth_limit = Some("1.5G".into())),
        ("no suffix", |s| s.bandwidth_limit = Some("1000000".into())),
        ("another mode", |s| s.mode = Mode::StopAndCopy),
        ("dry run", |s| s.dry_run = true),
    ];
    for (what, edit) in good {
        let result = migration(edit).validate_cel();
        assert!(result.is_ok(), "{what}: {result:?}");
    }
}

#[test]
fn bad_specs_are_answered_once_with_what_to_write_instead() {
    let bad: [(&str, &str, Edit); 18] = [
        ("spec.podName", "such as web-0", |s| s.pod_name = String::new()),
        ("spec.timeout", "such as 10m", |s| s.timeout = String::new()),
        ("spec.podName", "without 'pod/'", |s| s.pod_name = "pod/web-0".into()),
        ("spec.podName", "without 'pod/'", |s| s.pod_name = "Web".into()),
        ("spec.podName", "such as web-0", |s| s.pod_name = "web-0.".into()),
        ("spec.podName", "such as web-0", |s| s.pod_name = "web 0".into()),
        ("spec.targetNode", "such as node-b", |s| s.target_node = Some("node/node-b".into())),
        ("spec.targetNode", "such as node-b", |s| s.target_node = Some("-b".into())),
        ("spec.maxDowntime", "such as 300ms", |s| s.max_downtime = "300".into()),
        ("spec.maxDowntime", "such as 300ms", |s| s.max_downtime = "0s".into()),
        ("spec.maxDowntime", "such as 300ms", |s| s.max_downtime = "-1s".into()),
        ("spec.timeout", "such as 10m", |s| s.timeout = "ten minutes".into()),
        ("spec.timeout", "such as 10m", |s| s.timeout = "1d".into()),
        ("spec.bandwidthLimit", "such as 200Mi", |s| s.bandwidth_limit = Some("200Mi/s".into())),
        ("spec.bandwidthLimit", "such as 200Mi", |s| s.bandwidth_limit = Some("0".into())),
        ("spec.bandwidthLimit", "such as 200Mi", |s| s.bandwidth_limit = Some("200MB".into())),
        ("spec.bandwidthLimit", "such as 200Mi", |s| s.bandwidth_limit = Some("100m".into())),
        ("spec", "shorter than timeout", |s| s.timeout = "200ms".into()),
    ];
    for (path, answer, edit) in bad {
        let errors = migration(edit).validate_cel().unwrap_err();
        assert_eq!(errors.len(), 1, "{path} {answer}: {errors:?}");
        assert_eq!(errors[0].field_path, path);
        assert!(errors[0].message.contains(answer), "{errors:?}");
    }
}

#[test]
fn a_spec_never_changes() {
    let old = migration(|_| {});
    old.validate_cel_update(&old).unwrap();
    let changes: [Edit; 5] = [
        |s| s.pod_name = "web-1".into(),
        |s| s.target_node = Some("node-b".into()),
        |s| s.mode = Mode::Cold,
        |s| s.timeout = "11m".into(),
        |s| s.dry_run = true,
    ];
    for edit in changes {
        let errors = migration(edit).validate_cel_update(&old).unwrap_err();
        assert_eq!(errors[0].message, "spec is immutable; create another Migration instead");
    }
}

#[test]
fn a_decision_and_its_companions_are_written_once() {
    let time = "2026-01-02T03:04:05.000006Z";
    let none = || with_status(|_| {});
    let commit = || with_status(|s| s.decision = Some(Decision::Commit));
    let abort = || with_status(|s| s.decision = Some(Decision::Abort));
    let resumed = || {
        with_status(|s| {
            s.decision = Some(Decision::Commit);
            s.resumed_at = Some(micro(time));
        })
    };
    let resolved = || {
        with_status(|s| {
            s.decision = Some(Decision::Commit);
            s.resolution = Some(Resolution::SourceResumes);
        })
    };
    let later = || {
        with_status(|s| {
            s.decision = Some(Decision::Commit);
            s.resumed_at = Some(micro("2026-01-02T03:04:05.000007Z"));
        })
    };
    let without_status = || migration(|_| {});

    for (what, old, new) in [
        ("first status", without_status(), none()),
        ("commit", none(), commit()),
        ("commit as first status", without_status(), commit()),
        ("abort", none(), abort()),
        ("same again", commit(), commit()),
        ("resumed", commit(), resumed()),
        ("resumed again", resumed(), resumed()),
        ("resolved", commit(), resolved()),
    ] {
        let result = new.validate_cel_update(&old);
        assert!(result.is_ok(), "{what}: {result:?}");
    }
    for (what, old, new, answer) in [
        ("changed", commit(), abort(), "status.decision is written once"),
        ("changed back", abort(), commit(), "status.decision is written once"),
        ("removed", commit(), none(), "status.decision is written once"),
        ("whole status removed", commit(), without_status(), "status.decision is written once"),
        ("resumedAt removed", resumed(), commit(), "status.resumedAt is written once"),
        ("resumedAt changed", resumed(), later(), "status.resumedAt is written once"),
        ("resolution removed", resolved(), commit(), "status.resolution is written once"),
        ("resumed, then resolved", resumed(), resolved(), "status.resumedAt is written once"),
    ] {
        let errors = new.validate_cel_update(&old).unwrap_err();
        assert!(errors.iter().any(|e| e.message.contains(answer)), "{what}: {errors:?}");
    }
}

#[test]
fn the_outcome_needs_a_commit_and_is_only_one() {
    for (answer, edit) in [
        (
            "status.decision Commit before",
            (|s: &mut MigrationStatus| s.resumed_at = Some(micro("2026-01-02T03:04:05Z")))
                as fn(&mut MigrationStatus),
        ),
        ("status.decision Commit before", |s| {
            s.decision = Some(Decision::Abort);
            s.resolution = Some(Resolution::SourceResumes);
        }),
        ("leave out status.resolution", |s| {
            s.decision = Some(Decision::Commit);
            s.resumed_at = Some(micro("2026-01-02T03:04:05Z"));
            s.resolution = Some(Resolution::SourceResumes);
        }),
    ] {
        let errors = with_status(edit).validate_cel().unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].message.contains(answer), "{errors:?}");
    }
}

#[test]
fn a_manifest_gets_the_defaults_of_the_design() {
    let spec: MigrationSpec = serde_json::from_str(r#"{"podName": "web-0"}"#).unwrap();
    assert_eq!(spec, MigrationSpec::for_pod("web-0"));
    let json = serde_json::to_value(&spec).unwrap();
    let expected = serde_json::json!({
        "podName": "web-0", "mode": "Auto", "maxDowntime": "300ms", "network": "Auto",
        "timeout": "10m", "dryRun": false,
    });
    assert_eq!(json, expected);
    assert_eq!(spec.max_downtime(), Ok(Duration::from_millis(300)));
    assert_eq!(spec.timeout(), Ok(Duration::from_secs(600)));
    assert_eq!(spec.bandwidth_limit(), Ok(None));
}

/// As the API server sees them, before any Rust type does.
#[test]
fn a_bare_number_is_an_amount_of_bytes_but_no_duration() {
    let check = |field: &str| {
        let mut manifest =
            serde_json::json!({"podName": "web-0", "maxDowntime": "300ms", "timeout": "10m"});
        manifest[field] = 300.into();
        MigrationSpec::validate_cel(&manifest, None)
    };
    check("bandwidthLimit").unwrap();
    let spec: MigrationSpec =
        serde_json::from_str(r#"{"podName": "web-0", "bandwidthLimit": 300}"#).unwrap();
    assert_eq!(spec.bandwidth_limit(), Ok(Some(300)));
    for (field, answer) in [("maxDowntime", "such as 300ms"), ("timeout", "such as 10m")] {
        let errors = check(field).unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].message.contains(answer), "{errors:?}");
    }
}

#[test]
fn the_manifest_of_the_design_is_accepted_as_it_stands() {
    let spec: MigrationSpec = serde_json::from_value(serde_json::json!({
        "podName": "web-0", "targetNode": "node-b", "mode": "Auto", "maxDowntime": "300ms",
        "network": "Auto", "bandwidthLimit": "200Mi", "timeout": "10m",
        "placement": {
            "strategy": "spread", "constraints": ["region==us*"], "affinities": ["container!=web*"],
        },
        "dryRun": false,
    }))
    .unwrap();
    assert_eq!(spec.bandwidth_limit(), Ok(Some(200 << 20)));
    Migration::new("example", spec).validate_cel().unwrap();
}

/// Everything in the definition that could grow is bounded, so that rules stay affordable.
#[test]
fn every_string_that_a_rule_reads_has_a_length_and_every_list_a_size() {
    fn walk(path: &str, schema: &serde_json::Value, missing: &mut Vec<String>) {
        let has = |key: &str| schema.get(key).is_some();
        if has("x-kubernetes-int-or-string") && !has("maxLength") {
            missing.push(path.to_owned());
        }
        match schema["type"].as_str() {
            Some("string") if !(has("maxLength") || has("enum") || has("format")) => {
                missing.push(path.to_owned());
            }
            Some("array") => {
                if !has("maxItems") {
                    missing.push(path.to_owned());
                }
                walk(&format!("{path}[]"), &schema["items"], missing);
            }
            Some("object") => {
                for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                    walk(&format!("{path}.{name}"), property, missing);
                }
                if has("additionalProperties") && !has("maxProperties") {
                    missing.push(path.to_owned());
                }
            }
            _ => {}
        }
    }
    for crd in crate::crds() {
        let schema = serde_json::to_value(&crd.spec.versions[0].schema).unwrap();
        let mut missing = vec![];
        walk(&crd.spec.names.kind, &schema["openAPIV3Schema"], &mut missing);
        // Kubernetes' own condition type says in prose only how long its parts are.
        missing.retain(|path| !path.contains(".conditions[]."));
        assert_eq!(missing, Vec::<String>::new());
    }
}
