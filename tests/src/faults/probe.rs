//! Looks for a moment's sign in a node, where the kill comes at once or CRIU stands still for the fault.

use std::{
    fmt,
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Stdio},
    time::Duration,
};

use anyhow::{Result, bail};

use super::{driver::Scene, moment::Sign};
use crate::{
    cluster::Cluster,
    node::moment::{MISSED, Moment},
};

/// How long a moment may take to come.
pub const MOMENT: Duration = Duration::from_secs(60);

/// The moment passed before the fault could be injected.
#[derive(Debug)]
pub struct Missed(pub String);

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missed {}

/// Looks for a sign in a node.
#[derive(Debug)]
pub struct Probe {
    child: Child,
    /// Where it keeps CRIU standing when it has seen the sign.
    said: Option<ChildStdout>,
}

impl Probe {
    /// Starts it, if the sign is one in a node.
    pub fn start(scene: &Scene, sign: &Sign, kill: Option<&str>) -> Result<Option<Probe>> {
        let Sign::InNode(role, moment) = sign else { return Ok(None) };
        Probe::on_node(scene.cluster, scene.node(*role), *moment, kill).map(Some)
    }

    /// Starts it for a moment of the namespace's migration.
    pub fn on_node(
        cluster: &Cluster,
        node: &str,
        moment: Moment,
        kill: Option<&str>,
    ) -> Result<Probe> {
        let stands = moment.has_criu() && kill.is_none();
        let (moment, seconds) = (moment.to_string(), MOMENT.as_secs().to_string());
        let mut command = vec!["transship-probe", "await", &cluster.namespace, &moment, &seconds];
        command.extend(kill.iter().flat_map(|victim| ["--kill", victim]));
        let mut probe = cluster.on_node_command(node, &command);
        probe.stdin(Stdio::null()).stderr(Stdio::piped());
        if stands {
            probe.stdin(Stdio::piped()).stdout(Stdio::piped());
        }
        let mut child = probe.spawn()?;
        let said = child.stdout.take();
        Ok(Probe { child, said })
    }

    /// Waits until it has seen its sign. Gives itself back if it keeps CRIU standing.
    pub fn sees(mut self) -> Result<Option<Probe>> {
        if let Some(said) = self.said.take() {
            let mut line = String::new();
            BufReader::new(said).read_line(&mut line)?;
            if line.trim() == "now" {
                return Ok(Some(self));
            }
        }
        self.go_on().map(|()| None)
    }

    /// Waits for its end, which it is free to come to.
    pub fn go_on(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let output = self.child.wait_with_output()?;
        let says = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        match output.status.success() {
            true => Ok(()),
            false if says.contains(MISSED) => Err(Missed(says).into()),
            false => bail!("{says}"),
        }
    }
}
