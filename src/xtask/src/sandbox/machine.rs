//! A machine: namespaces, a disk and supervised services, started and ended from the host.
//!
//! Decides how a machine is begun, found again and ended; what runs in it comes from its
//! [`Specification`] (modules `control_plane` and `node`), and what happens inside is the business
//! of `init`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::{
    cgroup::Group,
    cmd::{self, wait_for, write_file},
    layout::{self, Node},
    network,
    process::{self, Process},
};

/// Where the supervisor tells what its services do, inside the machine.
pub const SERVICES_FILE: &str = "/run/sandbox/services.json";

/// What a machine is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Specification {
    /// Name, host name and control group.
    pub name: String,
    /// Read-only root file system.
    pub lower: PathBuf,
    /// Holds `upper`, `work`, `root` and `var` (a real file system for what must not lie on an
    /// overlay), and the papers.
    pub directory: PathBuf,
    /// Directories of the host seen inside.
    pub binds: Vec<Bind>,
    /// Its place in the network.
    pub network: Network,
    /// Settings of its network namespace.
    pub sysctls: BTreeMap<String, String>,
    /// Settings of the whole kernel that the machine sees as given here, and may change for itself
    /// only.
    pub shielded: BTreeMap<String, String>,
    /// What runs, in order of starting.
    pub services: Vec<Service>,
    /// New with each start.
    pub boot_id: String,
}

/// A directory of the host seen inside a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Bind {
    /// On the host.
    pub source: PathBuf,
    /// Inside, absolute.
    pub target: PathBuf,
}

/// A machine's place in the network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Network {
    /// The cables.
    pub interfaces: Vec<Interface>,
    /// Default route.
    pub gateway: String,
}

/// One cable of a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Interface {
    /// Its end in the machine: `eth0` in the node network, `eth1` in the pod network.
    pub cable: String,
    /// A bridge that the cable is plugged into, and that has the addresses instead of it.
    pub bridge: Option<String>,
    /// With prefix length.
    pub addresses: Vec<String>,
    /// The same at every start, since neighbours remember it.
    pub mac: String,
}

/// A supervised program.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Service {
    /// Names its log and control group.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Starts only when these hold.
    pub after: Vec<Condition>,
    /// Runs until it has succeeded once.
    pub once: bool,
}

/// What a service waits for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Condition {
    /// Something accepts connections on this Unix socket.
    Socket(PathBuf),
    /// Something accepts connections on this TCP address.
    Tcp(String),
    /// The file exists.
    File(PathBuf),
}

/// What the supervisor tells about a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// As in [`Service`].
    pub name: String,
    /// Process number inside the machine while it runs.
    pub pid: Option<i32>,
    /// How often it was started.
    pub starts: u32,
    /// A service that runs once has succeeded.
    pub done: bool,
}

/// What the first process of a machine writes when it begins.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Birth {
    /// The first process, as the host sees it.
    pub init: Process,
}

/// A machine seen from the host.
#[derive(Debug, Clone)]
pub struct Machine {
    name: String,
    /// What its cables are called after.
    short: String,
}

impl Machine {
    /// The machine of a node.
    pub fn of(node: Node) -> Self {
        Self { name: node.name(), short: node.name() }
    }

    /// The machine of the control plane.
    pub fn control_plane() -> Self {
        Self {
            name: layout::CONTROL_PLANE.to_owned(),
            short: layout::CONTROL_PLANE_SHORT.to_owned(),
        }
    }

    /// By name.
    pub fn parse(name: &str) -> Result<Self> {
        if name == layout::CONTROL_PLANE {
            return Ok(Self::control_plane());
        }
        Node::parse(name).map(Self::of)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its disk and papers.
    pub fn directory(&self) -> PathBuf {
        layout::machine(&self.name)
    }

    /// Its first process, if it runs.
    pub fn init(&self) -> Option<Process> {
        let birth = fs::read(self.directory().join("init.json")).ok()?;
        let birth: Birth = serde_json::from_slice(&birth).ok()?;
        birth.init.alive().then_some(birth.init)
    }

    /// Its first process, or an error that says what to do.
    pub fn running(&self) -> Result<Process> {
        self.init().with_context(|| {
            format!("{0} is not running: `cargo xtask sandbox start {0}` starts it", self.name)
        })
    }

    /// A path inside the running machine, seen from the host.
    pub fn inside(&self, init: Process, path: &str) -> PathBuf {
        Path::new("/proc")
            .join(init.pid.to_string())
            .join("root")
            .join(path.trim_start_matches('/'))
    }

    /// What its services do; none while it is not running or not yet that far.
    pub fn services(&self) -> Option<Vec<ServiceStatus>> {
        let file = self.inside(self.init()?, SERVICES_FILE);
        serde_json::from_slice(&fs::read(file).ok()?).ok()
    }

    /// Whether it runs and nothing that the host gives it is missing.
    pub fn whole(&self) -> bool {
        self.services().is_some() && network::connected(&self.short)
    }

    /// Whether its cables are cut.
    pub fn partitioned(&self) -> bool {
        network::partitioned(&self.short)
    }

    /// Cuts (`false`) or repairs its cables.
    pub fn connect(&self, up: bool) -> Result<()> {
        network::set_up(&self.short, up)
    }

    /// Boots it. What is left of an earlier life is ended first; its disk remains.
    pub fn start(&self, specification: &Specification) -> Result<()> {
        self.end()?;
        let directory = self.directory();
        make_disk(&directory, &specification.lower)?;
        let papers = directory.join("spec.json");
        write_file(&papers, serde_json::to_vec_pretty(specification)?, 0o600)?;
        Group::machine(&self.name)?.create()?;

        let console = fs::File::create(directory.join("console.log"))?;
        let mut launcher = Command::new(layout::program())
            .args(["sandbox", "launch"])
            .arg(&papers)
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console)
            .spawn()
            .context("launching a machine")?;
        let launcher_pid = i32::try_from(launcher.id())?;
        let mut check = || match launcher.try_wait()? {
            Some(status) => bail!("{} ended ({status}): {}", self.name, self.console()),
            None => Ok(()),
        };
        let limit = Duration::from_secs(20);
        let init = wait_for(format!("{} begins", self.name), limit, || {
            check()?;
            Ok(self.init())
        })?;
        // The launcher stands beside the machine's groups, which version 2 does not like.
        Group::machine(&self.name)?.settle(launcher_pid)?;
        network::connect(&self.short, init.pid)?;
        wait_for(format!("{} boots", self.name), limit, || {
            check()?;
            Ok(self.services())
        })
        .with_context(|| self.console())?;
        Ok(())
    }

    fn console(&self) -> String {
        let text = fs::read_to_string(self.directory().join("console.log")).unwrap_or_default();
        cmd::last_lines(&text, 10)
    }

    /// Ends it as a loss of power does: nobody in it is asked, and its peers hear nothing more.
    pub fn end(&self) -> Result<()> {
        if network::connected(&self.short) {
            // First of all: the kernel would say goodbye to the peers of a killed process.
            network::set_up(&self.short, false)?;
        }
        if let Some(init) = self.init() {
            process::kill(init.pid);
        }
        let group = Group::machine(&self.name)?;
        group.kill()?;
        network::disconnect(&self.short)?;
        group.remove()?;
        match fs::remove_file(self.directory().join("init.json")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// A command that runs inside, in all of the machine's namespaces and in its control group.
    pub fn command(&self, program: &str) -> Result<Command> {
        // Through a shell: between fork and exec Rust may do next to nothing.
        const ENTER: &str =
            r#"while [ "$1" != -- ]; do echo $$ > "$1" || exit; shift; done; shift; exec "$@""#;
        let init = self.running()?;
        let mut command = Command::new("sh");
        command
            .env_clear()
            .envs(super::init::environment())
            .args(["-c", ENTER, "enter"])
            .args(Group::machine(&self.name)?.gates())
            .args(["--", "nsenter"])
            .arg(format!("--target={}", init.pid))
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--", program]);
        Ok(command)
    }
}

/// A fresh overlay, and /var copied to where it is no overlay: container layers, volumes and the
/// product's own files need a real file system.
fn make_disk(directory: &Path, lower: &Path) -> Result<()> {
    for part in ["upper", "work", "root"] {
        fs::create_dir_all(directory.join(part))?;
    }
    let var = directory.join("var");
    if var.exists() {
        return Ok(());
    }
    let partial = directory.join("var.partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    cmd::run(Command::new("cp").arg("-a").args([lower.join("var"), partial.clone()]))?;
    fs::rename(partial, var)?;
    Ok(())
}

/// A new identifier as the kernel makes them.
pub fn fresh_boot_id() -> Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid").context("reading a random UUID")?;
    Ok(id.trim().to_owned())
}
