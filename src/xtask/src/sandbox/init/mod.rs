//! The inside of a machine: `launch` enters control groups and namespaces, `init` is then the first
//! process, which mounts the machine's root, sets up its network and supervises its services.

mod mounts;
mod supervise;

pub use mounts::SETTINGS;

use std::{
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{
    cgroup::{Group, Hierarchy, hierarchies},
    cmd::{ip, wait_for, write_file},
    machine::{Birth, Network, Specification},
    network::no_probing,
    process::Process,
};

/// Environment of everything in a machine.
pub fn environment() -> [(&'static str, &'static str); 4] {
    [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/kubernetes"),
        ("HOME", "/root"),
        ("LANG", "C.UTF-8"),
        ("TERM", "dumb"),
    ]
}

fn read(specification: &Path) -> Result<Specification> {
    let text =
        fs::read(specification).with_context(|| format!("reading {}", specification.display()))?;
    serde_json::from_slice(&text).context("reading the machine's specification")
}

/// Becomes `unshare`, which starts [`init`] in namespaces of its own. Runs on the host.
pub fn launch(specification: &Path) -> Result<ExitCode> {
    let machine = read(specification)?;
    rustix::process::setsid().context("starting a session")?;
    Group::machine(&machine.name)?.enter(0)?;
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--fork"]);
    let program = std::env::current_exe().context("finding this program")?;
    let error = unshare
        .args(["--propagation", "private", "--"])
        .arg(program)
        .args(["sandbox", "init"])
        .arg(specification)
        .exec();
    Err(error).context("running unshare")
}

/// The machine's first process. Ends only with the machine.
pub fn init(specification: &Path) -> Result<ExitCode> {
    if std::process::id() != 1 {
        bail!("only the first process of a machine does this");
    }
    let machine = read(specification)?;
    let hierarchies = hierarchies()?;
    // The old /proc still shows the host's numbers.
    let pid = fs::read_link("/proc/self").context("reading /proc/self")?;
    let pid = pid.to_str().and_then(|pid| pid.parse().ok()).context("reading /proc/self")?;
    let init = Process::find(pid).context("finding myself in the host's /proc")?;
    let birth = serde_json::to_vec(&Birth { init })?;
    write_file(&machine.directory.join("init.json"), birth, 0o644)?;

    mounts::enter_root(&machine, &hierarchies)?;
    fs::write("/proc/sys/kernel/hostname", &machine.name).context("setting the host name")?;
    // Before there are links: they begin with the defaults.
    for (name, value) in &machine.sysctls {
        let file = Path::new("/proc/sys").join(name.replace('.', "/"));
        if let Err(error) = fs::write(&file, value) {
            // A kernel without the feature has nothing to set.
            eprintln!("setting {name}: {error}");
        }
    }
    set_up_network(&machine.network)?;
    delegate(&hierarchies)?;
    supervise::run(&machine.services, &hierarchies)
}

fn set_up_network(network: &Network) -> Result<()> {
    ip(&["link", "set", "lo", "up"])?;
    for interface in &network.interfaces {
        let cable = interface.cable.as_str();
        // The host plugs the cables in once it knows this process.
        wait_for(format!("cable {cable}"), Duration::from_secs(30), || {
            Ok(Path::new("/sys/class/net").join(cable).exists().then_some(()))
        })?;
        let device = interface.bridge.as_deref().unwrap_or(cable);
        if device == cable {
            ip(&["link", "set", device, "address", &interface.mac])?;
        } else {
            ip(&["link", "add", device, "address", &interface.mac, "type", "bridge"])?;
            ip(&["link", "set", cable, "master", device, "up"])?;
        }
        for address in &interface.addresses {
            ip(&[&["address", "add", address, "dev", device], no_probing(address)].concat())?;
        }
        ip(&["link", "set", device, "up"])?;
    }
    ip(&["route", "add", "default", "via", &network.gateway])
}

/// Version 2: gives kubelet the controllers, after everybody has left the machine's root group.
fn delegate(hierarchies: &[Hierarchy]) -> Result<()> {
    for hierarchy in hierarchies.iter().filter(|hierarchy| hierarchy.v1.is_none()) {
        let own = hierarchy.mount.join("init");
        fs::create_dir_all(&own)?;
        fs::write(own.join("cgroup.procs"), "0").context("leaving the machine's root group")?;
        super::cgroup::delegate_controllers(&hierarchy.mount)?;
    }
    Ok(())
}
