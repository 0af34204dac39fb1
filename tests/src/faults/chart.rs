//! The chart is upgraded or rolled back in the middle of a migration: operators are replaced one after another,
//! agents as well or, beside other pairs of nodes, all at once; and by the agents every program that they have put on
//! their hosts.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};

use super::nodes;
use crate::cluster::{Cluster, path_in};

const NAMESPACE: &str = "--namespace=transship-system";
const RELEASE: &str = "transship";
/// In the checkout.
const CHART: &str = "charts/transship";
const OPERATOR: &str = "transship-operator";
/// By what the pods of the two revisions are told apart.
const MARK: &str = "transship.test/revision";
/// Says the tag of the agent's image for an upgrade. Its programs and libraries for the host do the same as those
/// of the first image, and each of them ends with this word.
const OTHER: &str = "TRANSSHIP_OTHER_PROGRAMS";
/// Where they are put, on the sandbox's nodes.
const PLACES: &str = "/opt/transship/bin /opt/transship/lib /usr/lib/cni/transship-cni";
/// Some of them: the runtime wrapper, which is CRIU's script as well, what holds, the network plugin, and CRIU.
const PROGRAMS: [&str; 5] = [
    "/opt/transship/bin/transship-runc",
    "/opt/transship/bin/transship-holder",
    "/opt/transship/bin/criu",
    "/opt/transship/lib/ld-linux-x86-64.so.2",
    "/usr/lib/cni/transship-cni",
];
/// The supervisor of holders runs the installed one.
const SUPERVISOR: &str = "supervised by /opt/transship/bin/transship-holder";
/// An agent is ready before its programs are in their places.
const INSTALLED: Duration = Duration::from_secs(90);

/// From which revision to which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Chart {
    /// To a new one, with other programs.
    Upgrade,
    /// Back to the former one.
    Rollback,
}

impl Chart {
    /// How it stands in a test's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Upgrade => "upgrade_the_chart",
            Self::Rollback => "roll_the_chart_back",
        }
    }

    /// Brings the release to where this starts from.
    pub fn prepare(self, cluster: &Cluster) -> Result<()> {
        let (upgraded, wanted) = (is_upgraded(cluster)?, self == Self::Rollback);
        match (upgraded, wanted) {
            (false, true) => Self::Upgrade.apply(cluster)?,
            (true, false) => Self::Rollback.apply(cluster)?,
            _ => return Ok(()),
        }
        Self::settled(cluster)
    }

    /// Asks for it; the pods are replaced from now on.
    pub fn apply(self, cluster: &Cluster) -> Result<()> {
        match self {
            Self::Upgrade => {
                let chart = in_checkout(CHART)?;
                let mark = MARK.replace('.', "\\.");
                let marks = ["operator", "agent"].map(|of| format!("{of}.podAnnotations.{mark}=2"));
                let values = format!("{},image.agent.tag={}", marks.join(","), other()?);
                helm(&["upgrade", RELEASE, &chart, "--reuse-values", "--set-string", &values])
            }
            Self::Rollback if is_upgraded(cluster)? => helm(&["rollback", RELEASE]),
            Self::Rollback => bail!("there is nothing to roll back"),
        }
    }

    /// Waits until every pod is of the one revision, and every program on every node.
    pub fn settled(cluster: &Cluster) -> Result<()> {
        for (kind, name) in [("daemonset", "transship-agent"), ("deployment", OPERATOR)] {
            let what = format!("{kind}/{name}");
            cluster.kubectl(&[NAMESPACE, "rollout", "status", &what, "--timeout=120s"])?;
        }
        let (upgraded, script) = (is_upgraded(cluster)?, look(&other()?));
        let installed = nodes::each(&nodes::names(cluster)?, |node| {
            let what = format!("{node} has the programs of its agent");
            cluster.await_that(&what, INSTALLED, || {
                are_all(&cluster.on_node(node, &["sh", "-c", &script])?, upgraded).map(|()| true)
            })
        });
        installed.map(drop)
    }
}

fn other() -> Result<String> {
    std::env::var(OTHER)
        .with_context(|| format!("{OTHER} is not set; run these tests with `cargo xtask test`"))
}

/// Prints a line for each program, whether it is one of the `other` ones, and what supervises the holders.
fn look(other: &str) -> String {
    // The brackets keep this shell from being meant.
    format!(
        "for f in $(find {PLACES} -type f); do \
         tail -c {} $f | grep -qaF '{other}' && echo \"other $f\" || echo \"first $f\"; done; \
         for p in $(pgrep -f '[t]ransship-holder supervise'); do \
         echo \"supervised by $(readlink /proc/$p/exe)\"; done",
        other.len()
    )
}

/// All programs that a node tells of are those of the one revision, and at work.
fn are_all(told: &str, upgraded: bool) -> Result<()> {
    let (supervisors, programs): (Vec<&str>, Vec<&str>) =
        told.lines().partition(|line| line.starts_with("supervised by "));
    let wanted = if upgraded { "other" } else { "first" };
    for program in PROGRAMS {
        let line = format!("{wanted} {program}");
        ensure!(programs.contains(&line.as_str()), "{program} is not the {wanted} one:\n{told}");
    }
    let is_wanted = |line: &&str| line.split(' ').next() == Some(wanted);
    ensure!(programs.iter().all(is_wanted), "not all are the {wanted} ones:\n{told}");
    // One that was replaced has no file any more.
    ensure!(supervisors == [SUPERVISOR], "holders are not supervised by the new one:\n{told}");
    Ok(())
}

/// Installs the chart as the sandbox does, but with the operators on one node (none: wherever there is
/// room), and waits until they are there. Does nothing where it is so. With a node of their own there are many
/// others: the agents of all are then replaced at once.
pub fn keep_operators(cluster: &Cluster, node: Option<&str>) -> Result<()> {
    let path = r"jsonpath={.spec.template.spec.nodeSelector.kubernetes\.io/hostname}";
    let is = cluster.kubectl(&[NAMESPACE, "get", "deployment", OPERATOR, "-o", path])?;
    // A broken run may have left the other revision.
    if is == node.unwrap_or_default() && !is_upgraded(cluster)? {
        return Ok(());
    }
    let values = in_checkout("src/xtask/sandbox-assets/values.yaml")?;
    let differs = node.map(|node| {
        format!(r"operator.nodeSelector.kubernetes\.io/hostname={node},agent.maxUnavailable=100%")
    });
    let chart = in_checkout(CHART)?;
    let mut args = vec!["upgrade", RELEASE, &chart, "--reset-values", "--values", &values];
    args.extend(differs.iter().flat_map(|values| ["--set", values]));
    helm(&args)?;
    Chart::settled(cluster)
}

fn in_checkout(path: &str) -> Result<String> {
    Ok(path_in("TRANSSHIP_CHECKOUT")?.join(path).display().to_string())
}

fn is_upgraded(cluster: &Cluster) -> Result<bool> {
    let path =
        format!("jsonpath={{.spec.template.metadata.annotations.{}}}", MARK.replace('.', "\\."));
    let mark = cluster.kubectl(&[NAMESPACE, "get", "daemonset", "transship-agent", "-o", &path])?;
    Ok(!mark.is_empty())
}

fn helm(args: &[&str]) -> Result<()> {
    let mut helm = Command::new(path_in("TRANSSHIP_HELM")?);
    let output = helm.arg(NAMESPACE).args(args).output().context("running helm")?;
    if !output.status.success() {
        bail!("helm {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_the_programs_of_one_revision_or_is_not_done() {
        let lines =
            |revision: &str| PROGRAMS.map(|program| format!("{revision} {program}\n")).concat();
        let supervisor = format!("{SUPERVISOR}\n");
        for (revision, upgraded) in [("first", false), ("other", true)] {
            let all = lines(revision);
            let done = format!("{all}{revision} /opt/transship/bin/nft\n{supervisor}");
            are_all(&done, upgraded).unwrap();
            are_all(&done, !upgraded).unwrap_err();
            are_all(&all, upgraded).unwrap_err();
            are_all(&supervisor, upgraded).unwrap_err();
            let (first, rest) = done.split_once('\n').unwrap();
            are_all(rest, upgraded).unwrap_err();
            assert!(first.ends_with(PROGRAMS[0]), "{first}");
            let another = done.replace(&format!("{revision} /opt/transship/bin/nft"), "third nft");
            are_all(&another, upgraded).unwrap_err();
            are_all(&done.replace(SUPERVISOR, &format!("{SUPERVISOR} (deleted)")), upgraded)
                .unwrap_err();
            are_all(&format!("{done}{SUPERVISOR} (deleted)\n"), upgraded).unwrap_err();
        }
    }

    #[test]
    fn a_program_is_known_by_its_end() {
        let script = look("other");
        assert!(script.contains("tail -c 5 ") && script.contains("grep -qaF 'other'"), "{script}");
    }
}
