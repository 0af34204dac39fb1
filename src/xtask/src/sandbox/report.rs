//! Answers questions about the sandbox: status, logs.

use std::{
    fs,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};

use super::{
    cluster::{self, NodeView},
    layout::{CONTROL_PLANE_ADDRESS, Node},
    lifecycle,
    machine::{Machine, ServiceStatus},
    state::State,
};

/// Prints every machine and its services. Succeeds when everything runs and all nodes are Ready.
pub fn status() -> Result<ExitCode> {
    let Some(state) = State::load() else {
        println!("there is no sandbox");
        return Ok(ExitCode::FAILURE);
    };
    let views = cluster::nodes().unwrap_or_default();
    let mut fine = true;
    for machine in [Machine::control_plane()].into_iter().chain(state.nodes().map(Machine::of)) {
        let node = Node::parse(machine.name()).ok();
        let services = machine.services();
        let view = views.get(machine.name());
        let cut = machine.partitioned();
        let ready = node.is_none() || view.is_some_and(|view| view.ready);
        fine &= ready && !cut && services.as_deref().is_some_and(all_run);
        let pid = machine.init().map_or("-".into(), |init| init.pid.to_string());
        println!(
            "{:<14} {:<12} pid {pid:<8} {:<9} {:<14} {}",
            machine.name(),
            life(services.is_some(), cut),
            node.map_or("", |_| readiness(view)),
            node.map_or_else(|| CONTROL_PLANE_ADDRESS.to_owned(), Node::address),
            services.as_deref().map(describe).unwrap_or_default(),
        );
    }
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn life(running: bool, cut: bool) -> &'static str {
    match (running, cut) {
        (false, _) => "off",
        (true, true) => "partitioned",
        (true, false) => "running",
    }
}

fn readiness(view: Option<&NodeView>) -> &'static str {
    match view {
        Some(view) if view.ready => "Ready",
        Some(_) => "NotReady",
        None => "unknown",
    }
}

fn all_run(services: &[ServiceStatus]) -> bool {
    services.iter().all(|service| service.pid.is_some() || service.done)
}

fn describe(services: &[ServiceStatus]) -> String {
    let each = |service: &ServiceStatus| {
        let state = match (service.pid, service.done) {
            (Some(_), _) => "up",
            (None, true) => "done",
            (None, false) if service.starts == 0 => "waiting",
            (None, false) => "down",
        };
        let restarts = service.starts.saturating_sub(1);
        let restarts = if restarts > 0 { format!(" ({restarts} restarts)") } else { String::new() };
        format!("{} {state}{restarts}", service.name)
    };
    services.iter().map(each).collect::<Vec<_>>().join(", ")
}

/// Which logs to print.
#[derive(Debug, clap::Args)]
pub struct LogArgs {
    /// node-a, … or control-plane
    node: String,
    /// containerd, kubelet, kube-proxy, images; etcd, kube-apiserver, … of the control plane
    #[arg(long, short)]
    service: Option<String>,
    /// Lines from the end of each log
    #[arg(long, short = 'n', default_value_t = 200)]
    lines: u32,
    /// Go on with what is written from now on
    #[arg(long, short)]
    follow: bool,
}

/// Prints logs, also those of a machine that is off.
pub fn logs(args: &LogArgs) -> Result<ExitCode> {
    let machine = lifecycle::machine(&args.node)?;
    let directory = machine.directory().join("var/log/sandbox");
    let mut names = Vec::new();
    for entry in
        fs::read_dir(&directory).with_context(|| format!("{} has no logs yet", machine.name()))?
    {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".log").map(ToOwned::to_owned));
    }
    names.sort();
    if let Some(service) = &args.service {
        if !names.contains(service) {
            bail!("{} has no service {service}; there are {}", machine.name(), names.join(", "));
        }
        names.retain(|name| name == service);
    }
    let mut tail = Command::new("tail");
    tail.arg(format!("--lines={}", args.lines));
    if args.follow {
        tail.arg("-F");
    }
    tail.args(names.iter().map(|name| directory.join(format!("{name}.log"))));
    Err(tail.exec()).context("running tail")
}

/// Becomes a command inside a machine; its exit code is ours.
pub fn exec(name: &str, command: &[String]) -> Result<ExitCode> {
    let machine = lifecycle::machine(name)?;
    let [program, arguments @ ..] = command else { bail!("nothing to run") };
    let mut inside = machine.command(program)?;
    let group = super::cgroup::Group::machine(machine.name())?.child("exec");
    group.create()?;
    group.enter(0)?;
    Err(inside.args(arguments).exec()).context("running nsenter")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, pid: Option<i32>, starts: u32, done: bool) -> ServiceStatus {
        ServiceStatus { name: name.into(), pid, starts, done }
    }

    #[test]
    fn services_are_told_in_one_line() {
        let services = [
            service("containerd", Some(4), 2, false),
            service("images", None, 1, true),
            service("kubelet", None, 0, false),
            service("kube-proxy", None, 3, false),
        ];
        assert_eq!(
            describe(&services),
            "containerd up (1 restarts), images done, kubelet waiting, kube-proxy down (2 restarts)"
        );
        assert!(all_run(&services[..2]) && !all_run(&services));
    }
}
