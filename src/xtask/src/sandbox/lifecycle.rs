//! Brings the whole sandbox up, and takes it down.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};

use super::{
    caches::{self, Caches},
    cgroup::Group,
    chart, cluster,
    cmd::{note, step, wait_for},
    control_plane, images,
    init::SETTINGS,
    layout::{self, CONTROL_PLANE, Node},
    machine::{Machine, fresh_boot_id},
    network, node, pki, residue,
    state::{Lock, State},
    sysctl,
};

/// Nodes of a new sandbox.
const DEFAULT_NODES: u8 = 2;

/// What `up` is to make.
#[derive(Debug, Default, Clone, Copy)]
pub struct Wanted {
    /// At least so many nodes; without it those that are there, or two.
    pub nodes: Option<u8>,
    /// Leave the chart alone.
    pub no_chart: bool,
}

/// Makes the sandbox, or repairs and completes it. Quick when nothing is missing.
pub fn up(wanted: Wanted) -> Result<()> {
    let started = Instant::now();
    require_root()?;
    let _lock = Lock::take()?;
    let caches = caches::ensure()?;
    let mut state = adopt(&recipe(&caches)?)?;
    state.nodes = state.nodes.max(wanted.nodes.unwrap_or(DEFAULT_NODES));
    state.save()?;
    sysctl::apply()?;
    install_program()?;
    pki::ensure()?;
    state.nodes().try_for_each(pki::ensure_node)?;
    images::remember_pause(&caches.pause)?;
    network::ensure_bridges()?;

    ensure_control_plane(&caches)?;
    let boots = ensure_nodes(&caches, &state)?;
    step("nodes are Ready", || {
        cluster::wait_for_nodes(&boots)?;
        cluster::wait_for_service_account()
    })?;
    route_services(&state)?;
    link_clients()?;
    let machines: Vec<Machine> = state.nodes().map(Machine::of).collect();
    images::import(&machines)?;
    if !wanted.no_chart {
        chart::install(&mut state, &machines)?;
    }
    note(format!(
        "up with {} nodes after {:.1} s; export KUBECONFIG={}",
        state.nodes,
        started.elapsed().as_secs_f64(),
        layout::kubeconfig().display()
    ));
    Ok(())
}

fn require_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    bail!("the sandbox makes namespaces and network links: run it as root")
}

/// A digest of all that a sandbox is made from.
fn recipe(caches: &Caches) -> Result<String> {
    let parts = [
        caches::key(),
        node::templates(),
        serde_json::to_string(&node::recipe(caches))?,
        serde_json::to_string(&control_plane::specification(caches, String::new()))?,
    ];
    Ok(crate::oci::digest(parts.join("\n").as_bytes()))
}

/// The present sandbox, if it can be carried on with; else the beginning of a new one, after what is
/// left of any other has been removed.
fn adopt(recipe: &str) -> Result<State> {
    let fresh = State { recipe: recipe.to_owned(), ..State::default() };
    match State::load() {
        Some(state) if state.recipe == recipe => return Ok(state),
        Some(_) => note("the present sandbox is of another make: making it anew"),
        None => {}
    }
    remove_all()?;
    Ok(fresh)
}

/// Machines run a copy of this program.
fn install_program() -> Result<()> {
    let program = layout::program();
    let parent = program.parent().context("a path with a parent")?;
    fs::create_dir_all(parent)?;
    let partial = program.with_extension("partial");
    fs::copy("/proc/self/exe", &partial).context("copying this program")?;
    fs::rename(&partial, &program)?;
    Ok(())
}

fn ensure_control_plane(caches: &Caches) -> Result<()> {
    ensure_machine(&Machine::control_plane(), caches)?;
    step("API server is ready", cluster::wait_for_api)
}

/// Starts the nodes that do not run and heals those that are cut off. Answers the boot of each.
fn ensure_nodes(caches: &Caches, state: &State) -> Result<BTreeMap<Node, String>> {
    let nodes: Vec<Node> = state.nodes().collect();
    thread::scope(|scope| {
        let workers: Vec<_> = nodes
            .iter()
            .map(|&node| {
                scope.spawn(move || {
                    ensure_machine(&Machine::of(node), caches).map(|boot| (node, boot))
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().map_err(|_| anyhow!("starting a node panicked")).flatten())
            .collect()
    })
}

/// Starts a machine that does not run as a whole, heals it if it is cut off. Answers its boot.
fn ensure_machine(machine: &Machine, caches: &Caches) -> Result<String> {
    if !machine.whole() {
        step(format!("started {}", machine.name()), || start_machine(machine, caches))?;
    } else if machine.partitioned() {
        machine.connect(true)?;
        note(format!("healed {}", machine.name()));
    }
    let file = format!("{SETTINGS}/kernel.random.boot_id");
    let file = machine.inside(machine.running()?, &file);
    let id = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    Ok(id.trim().to_owned())
}

fn start_machine(machine: &Machine, caches: &Caches) -> Result<()> {
    machine.end()?;
    let boot_id = fresh_boot_id()?;
    let specification = match Node::parse(machine.name()) {
        Ok(node) => {
            node::write_files(node, &machine.directory())?;
            node::specification(node, caches, boot_id)
        }
        Err(_) => {
            control_plane::write_files(&machine.directory())?;
            control_plane::specification(caches, boot_id)
        }
    };
    machine.start(&specification)
}

/// The host reaches ClusterIPs through the first node that runs.
fn route_services(state: &State) -> Result<()> {
    let reachable = |node: &Node| {
        let machine = Machine::of(*node);
        machine.init().is_some() && !machine.partitioned()
    };
    network::route_services(state.nodes().find(reachable))
}

/// Puts kubectl and helm onto PATH where the machine has none.
fn link_clients() -> Result<()> {
    for program in ["kubectl", "helm"] {
        let link = Path::new("/usr/local/bin").join(program);
        let target = caches::kubernetes_directory().join(program);
        match fs::read_link(&link) {
            Ok(old) if old == target => continue,
            Ok(old) if old.starts_with(layout::CACHE) => fs::remove_file(&link)?,
            _ if link.exists() => continue,
            _ => {}
        }
        symlink(&target, &link).with_context(|| format!("linking {}", link.display()))?;
    }
    Ok(())
}

/// The nodes of the sandbox, or an error that says how to get one.
pub fn present() -> Result<State> {
    State::load().context("there is no sandbox: `cargo xtask sandbox up` makes one")
}

/// A machine of the present sandbox.
pub fn machine(name: &str) -> Result<Machine> {
    machine_of(&present()?, name)
}

fn machine_of(state: &State, name: &str) -> Result<Machine> {
    let machine = Machine::parse(name)?;
    if name == CONTROL_PLANE || state.nodes().any(|node| node.name() == name) {
        return Ok(machine);
    }
    bail!("{name} is not a node of the sandbox, which has {}", state.nodes)
}

/// Ends a machine as a loss of power does.
pub fn kill(name: &str) -> Result<()> {
    let _lock = Lock::take()?;
    let state = present()?;
    let machine = machine_of(&state, name)?;
    step(format!("killed {name}"), || machine.end())?;
    route_services(&state)
}

/// Boots a machine that does not run, and waits until it does its work.
pub fn start(name: &str) -> Result<()> {
    let _lock = Lock::take()?;
    let state = present()?;
    let machine = machine_of(&state, name)?;
    let caches = caches::ensure()?;
    let boot = ensure_machine(&machine, &caches)?;
    match Node::parse(name) {
        Ok(node) => {
            step(format!("{name} is Ready"), || cluster::wait_for_nodes(&[(node, boot)].into()))?;
        }
        Err(_) => step("API server is ready", cluster::wait_for_api)?,
    }
    route_services(&state)
}

/// Cuts (`false`) or repairs (`true`) the cable of a running machine.
pub fn connect(name: &str, up: bool) -> Result<()> {
    let _lock = Lock::take()?;
    let state = present()?;
    let machine = machine_of(&state, name)?;
    machine.running()?;
    machine.connect(up)?;
    note(format!("{} {name}", if up { "healed" } else { "partitioned" }));
    route_services(&state)
}

/// Loads image archives into every node, now and for later.
pub fn load(archives: &[PathBuf]) -> Result<()> {
    let _lock = Lock::take()?;
    let state = present()?;
    let running: Vec<Machine> =
        state.nodes().map(Machine::of).filter(|machine| machine.services().is_some()).collect();
    images::load(archives, &running)
}

/// Removes the sandbox, whatever state it is in. Caches stay.
pub fn down() -> Result<()> {
    require_root()?;
    let _lock = Lock::take()?;
    step("down", remove_all)?;
    residue::none_left()
}

fn remove_all() -> Result<()> {
    network::route_services(None)?;
    // Cables first, so that no process says goodbye in any other way than by silence.
    network::remove()?;
    let group = Group::sandbox()?;
    group.kill()?;
    group.remove()?;
    network::remove()?;
    sysctl::restore()?;
    remove_state()?;
    check_nothing_left(&group)
}

fn mounts_below(directory: &str) -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("reading mountinfo")?;
    Ok(text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        // The directory itself may be a mount of whoever prepared the machine.
        .filter(|mount| mount.starts_with(directory) && mount != Path::new(directory))
        .collect())
}

fn remove_state() -> Result<()> {
    // The machines' mounts are in namespaces of their own; this is for what anybody else mounted.
    for mount in mounts_below(layout::STATE)?.into_iter().rev() {
        rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH)
            .with_context(|| format!("unmounting {}", mount.display()))?;
    }
    let limit = Duration::from_secs(10);
    wait_for(format!("removing {}", layout::STATE), limit, || {
        match fs::remove_dir_all(layout::STATE) {
            Ok(()) => Ok(Some(())),
            Err(error) => match error.kind() {
                std::io::ErrorKind::NotFound => Ok(Some(())),
                std::io::ErrorKind::ResourceBusy if is_empty(layout::STATE) => Ok(Some(())),
                // The last mounts go a moment after the last process.
                std::io::ErrorKind::ResourceBusy | std::io::ErrorKind::DirectoryNotEmpty => {
                    Ok(None)
                }
                _ => Err(error).with_context(|| format!("removing {}", layout::STATE)),
            },
        }
    })
}

fn is_empty(directory: &str) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

fn check_nothing_left(group: &Group) -> Result<()> {
    let mut left: Vec<String> = network::links()?;
    left.extend(group.remains().iter().map(|path| path.display().to_string()));
    left.extend(mounts_below(layout::STATE)?.iter().map(|path| path.display().to_string()));
    if left.is_empty() { Ok(()) } else { bail!("these are left: {}", left.join(", ")) }
}
