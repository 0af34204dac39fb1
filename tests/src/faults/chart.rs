//! The chart is upgraded or rolled back in the middle of a migration: operators and agents are replaced
//! one after another.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cluster::{Cluster, path_in};

const NAMESPACE: &str = "--namespace=transship-system";
const RELEASE: &str = "transship";
/// In the checkout.
const CHART: &str = "charts/transship";
const OPERATOR: &str = "transship-operator";
/// What differs between the two revisions; everything else of a pod's template stays.
const MARK: &str = "transship.test/revision";

/// From which revision to which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Chart {
    /// To a new one.
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
                let marks = marks.join(",");
                helm(&["upgrade", RELEASE, &chart, "--reuse-values", "--set-string", &marks])
            }
            Self::Rollback if is_upgraded(cluster)? => helm(&["rollback", RELEASE]),
            Self::Rollback => bail!("there is nothing to roll back"),
        }
    }

    /// Waits until every pod is of the one revision.
    pub fn settled(cluster: &Cluster) -> Result<()> {
        for (kind, name) in [("daemonset", "transship-agent"), ("deployment", OPERATOR)] {
            let what = format!("{kind}/{name}");
            cluster.kubectl(&[NAMESPACE, "rollout", "status", &what, "--timeout=120s"])?;
        }
        Ok(())
    }
}

/// Installs the chart as the sandbox does, but with the operators on one node (none: wherever there is
/// room), and waits until they are there. Does nothing where it is so.
pub fn keep_operators(cluster: &Cluster, node: Option<&str>) -> Result<()> {
    let path = r"jsonpath={.spec.template.spec.nodeSelector.kubernetes\.io/hostname}";
    let is = cluster.kubectl(&[NAMESPACE, "get", "deployment", OPERATOR, "-o", path])?;
    // A broken run may have left the other revision.
    if is == node.unwrap_or_default() && !is_upgraded(cluster)? {
        return Ok(());
    }
    let values = in_checkout("src/xtask/sandbox-assets/values.yaml")?;
    let place = node.map(|node| format!(r"operator.nodeSelector.kubernetes\.io/hostname={node}"));
    let chart = in_checkout(CHART)?;
    let mut args = vec!["upgrade", RELEASE, &chart, "--reset-values", "--values", &values];
    args.extend(place.iter().flat_map(|place| ["--set", place]));
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
