//! Conditions and comparison of statuses.

use super::*;

fn machine() -> Machine {
    Machine { kernel: "6.18.0".into(), cpu: Cpu::default(), boot_id: "b".into(), cgroup_version: 1 }
}

fn side(state: HostSideState, problem: Option<(&'static str, &str)>) -> HostSide {
    HostSide {
        state,
        runtime: ("containerd".into(), "2.1.9".into()),
        runc: "1.3.6".into(),
        snapshotter: "overlayfs".into(),
        tearing_down: false,
        problem: problem.map(|(reason, message)| (reason, message.to_owned())),
    }
}

fn probe(problem: Option<(&'static str, String)>) -> criu::Probe {
    criu::Probe { version: "4.2.1".into(), features: vec!["pagemap_scan".into()], problem }
}

fn judged(
    side: &HostSide,
    criu: Option<&criu::Probe>,
    supervisor: Option<&str>,
    certified: bool,
) -> Vec<Condition> {
    let supervisor = supervisor.map(str::to_owned);
    let found = Found {
        machine: &machine(),
        criu,
        side,
        supervisor: &supervisor,
        certified,
        amounts: &Default::default(),
        sides: &[],
    };
    judge(&found, &[], Some(1), Timestamp::UNIX_EPOCH)
}

fn of<'a>(conditions: &'a [Condition], type_: &str) -> (&'a str, &'a str) {
    let condition = conditions::find(conditions, type_).unwrap();
    (condition.status.as_str(), condition.reason.as_str())
}

#[test]
fn a_node_is_ready_when_everything_is() {
    use HostSideState as S;
    let good = probe(None);
    let bad = probe(Some((reasons::KERNEL_TOO_OLD, "no".into())));
    let installed = side(S::Installed, None);
    let inactive = side(S::Installed, Some((reasons::WRAPPER_NOT_ACTIVE, "x; restart")));
    let failed = side(S::Failed, Some((reasons::INSTALL_FAILED, "x")));
    let removed = side(S::Removed, Some((reasons::UNINSTALLED, "x")));
    let cases = [
        (&installed, Some(&good), None, true, ("True", "Available"), ("True", "Available")),
        (&installed, Some(&bad), None, true, ("False", "ComponentNotReady"), ("True", "Available")),
        (&installed, None, None, true, ("False", "ComponentNotReady"), ("True", "Available")),
        (
            &installed,
            Some(&good),
            Some("died"),
            true,
            ("False", "ComponentNotReady"),
            ("True", "Available"),
        ),
        (
            &installed,
            Some(&good),
            None,
            false,
            ("False", "ComponentNotReady"),
            ("True", "Available"),
        ),
        (
            &inactive,
            Some(&good),
            None,
            true,
            ("False", "ComponentNotReady"),
            ("False", "WrapperNotActive"),
        ),
        (&failed, None, None, true, ("False", "InstallFailed"), ("False", "InstallFailed")),
        (&removed, None, None, true, ("False", "Uninstalled"), ("False", "Uninstalled")),
    ];
    for (side, criu, supervisor, certified, ready, runtime) in cases {
        let conditions = judged(side, criu, supervisor, certified);
        assert_eq!(of(&conditions, READY), ready, "{side:?}");
        assert_eq!(of(&conditions, conditions::RUNTIME_READY), runtime, "{side:?}");
        assert_eq!(conditions.len(), NODE_AGENT_TYPES.len(), "all known ones at the first visit");
    }
    let conditions = judged(&installed, Some(&good), None, true);
    assert_eq!(of(&conditions, conditions::STORE_REACHABLE), ("Unknown", "NoStore"));
}

#[test]
fn conditions_of_others_are_neither_written_nor_compared() {
    let mut live = Vec::new();
    set_condition(&mut live, FENCED, true.into(), "Proven", "", None, Timestamp::UNIX_EPOCH);
    let good = probe(None);
    let installed = side(HostSideState::Installed, None);
    let found = Found {
        machine: &machine(),
        criu: Some(&good),
        side: &installed,
        supervisor: &None,
        certified: true,
        amounts: &Default::default(),
        sides: &[],
    };
    let conditions = judge(&found, &live, Some(1), Timestamp::UNIX_EPOCH);
    assert!(conditions::find(&conditions, FENCED).is_none());
    let wanted = NodeStatus { conditions: conditions.clone(), ..NodeStatus::default() };
    let mut stored = wanted.clone();
    stored.conditions.extend(live);
    stored.heartbeat_time = Some(MicroTime(Timestamp::UNIX_EPOCH));
    stored.failure_count = Some(3);
    assert!(!differs(&wanted, &stored).unwrap());
    // The operator says that the node is not ready: the agent says it anew.
    set_condition(
        &mut stored.conditions,
        READY,
        false.into(),
        reasons::HEARTBEAT_MISSED,
        "",
        None,
        Timestamp::UNIX_EPOCH,
    );
    assert!(differs(&wanted, &stored).unwrap());
}

#[test]
fn a_status_is_written_when_it_says_something_new_or_less() {
    let base = NodeStatus { kernel: Some("6.18.0".into()), ..NodeStatus::default() };
    assert!(differs(&base, &NodeStatus::default()).unwrap());
    assert!(!differs(&base, &base).unwrap());
    let with_criu = NodeStatus { criu: Some(Criu::default()), ..base.clone() };
    assert!(differs(&with_criu, &base).unwrap());
    assert!(differs(&base, &with_criu).unwrap(), "withdrawn");
}
