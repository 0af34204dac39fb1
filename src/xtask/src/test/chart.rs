//! The chart, without a cluster.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::status;
use crate::sandbox::layout;

/// What Helm itself says of the chart, with the default values and the sandbox's, and what some values come to.
pub(super) fn lint(root: &Path) -> Result<()> {
    const LISTED: &str = r#"discovery.nodes=["worker-[01:20]"]"#;
    const WORKERS: &str = "- \"--static-node=worker-[01:20]\"\n";
    const RESERVE: &str = "scheduler.overcommitPercent=-10";
    const SCHEDULER: &str = "image: registry.k8s.io/kube-scheduler:";
    const DEFAULTS: [&str; 2] = ["--set", "scheduler.enabled=true"];
    let chart = root.join("charts/transship");
    let values = root.join("src/xtask/sandbox-assets/values.yaml");
    status(Command::new(layout::helm()).args(["lint", "--strict"]).arg(&chart))?;
    status(
        Command::new(layout::helm())
            .args(["lint", "--strict", "--values"])
            .arg(&values)
            .arg(&chart),
    )?;
    for (arguments, line) in [
        (["--set-json", LISTED], WORKERS.to_owned()),
        (["--kube-version", "v1.34.5+k3s1"], format!("{SCHEDULER}v1.34.5\n")),
        (["--kube-version", "v1.34.5-eks-0a1b2c3"], format!("{SCHEDULER}v1.34.5\n")),
        (["--set", "scheduler.image.tag=v1.35.0"], format!("{SCHEDULER}v1.35.0\n")),
        (["--set", RESERVE], "- --overcommit-percent=-10\n".to_owned()),
        (["--set", RESERVE], "overcommitPercent: \"-10\"\n".to_owned()),
        // All nodes are ranked, by nobody but the operator, and no pod is ended for one that it refuses.
        (DEFAULTS, "\n    percentageOfNodesToScore: 100\n".to_owned()),
        (DEFAULTS, "\n        ignorable: false\n".to_owned()),
        (DEFAULTS, "\n          multiPoint: {disabled: [{name: DefaultPreemption}]}\n".to_owned()),
    ] {
        let mut helm = Command::new(layout::helm());
        helm.args(["template", "transship"]).arg(&chart).args(arguments).stderr(Stdio::inherit());
        let rendered = helm.output().context("running helm")?;
        if !String::from_utf8_lossy(&rendered.stdout).contains(&line) {
            bail!("with {arguments:?} the chart has no line {line:?}");
        }
    }
    Ok(())
}
