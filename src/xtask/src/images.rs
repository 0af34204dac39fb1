//! `cargo xtask images`: the product's images and those of the examples as OCI archives in
//! `target/images`, made without a container engine from Debian packages and our own binaries.
//!
//! What lies on a node must run on any distribution, so our binaries are linked statically, and
//! CRIU and nft come with their loader and libraries (`payload`): their interpreter and library
//! path are rewritten to the one directory the agent installs into.

mod for_tests;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};

use crate::{
    oci::{self, Image},
    sandbox::{self, cmd, layout},
};

pub use for_tests::{OTHER_PROGRAMS, agent_with_other_programs, applications};

/// Where CRIU and its libraries lie on a node; see `transship_host::paths`.
const HOST_DIR: &str = "/opt/transship";
/// Where they lie in the agent's image, with our own programs for the node.
const PAYLOAD: &str = "opt/transship-host";
const TARGET: &str = "x86_64-unknown-linux-gnu";
const SUITE: &str = "forky";

/// Version of CRIU that the product is tested with; another one in the archive is an error here
/// and not a surprise on a node.
const CRIU: &str = "4.2";

/// Image names, as the chart's values and the examples use them.
pub const OPERATOR: &str = "localhost/transship-operator";
/// See [`OPERATOR`].
pub const AGENT: &str = "localhost/transship-agent";
/// kube-scheduler as it is published, beside the operator; the sandbox has no registry to pull from.
pub const SCHEDULER: &str = "localhost/kube-scheduler";
/// python3 and redis for the examples and tests.
pub const EXAMPLES: &str = "localhost/transship-examples:1";

/// The archives, in the order in which they are loaded.
pub fn archives(root: &Path) -> Vec<PathBuf> {
    let dir = root.join("target/images");
    ["operator", "agent", "scheduler", "examples"]
        .map(|name| dir.join(format!("{name}.tar")))
        .to_vec()
}

/// Builds all images; what has not changed is not built again.
pub fn build(root: &Path) -> Result<()> {
    let out = root.join("target/images");
    fs::create_dir_all(&out)?;
    let bin = binaries(root)?;
    let tag = env!("CARGO_PKG_VERSION");

    let operator = fresh(&out.join("operator-root"))?;
    install(&bin.join("transship-operator"), &operator.join("usr/bin/transship-operator"))?;
    passwd(&operator)?;
    oci::write_archive(
        &out.join("operator.tar"),
        &Image {
            name: format!("{OPERATOR}:{tag}"),
            entrypoint: vec!["/usr/bin/transship-operator".into()],
            user: Some("65532:65532".into()),
            ..Image::default()
        },
        &[&operator],
    )?;

    let [base, agent] = agent_layers(root);
    let base = debian(&base, &["criu", "nftables", "util-linux"])?;
    let agent = fresh(&agent)?;
    install(&bin.join("transship-agent"), &agent.join("usr/bin/transship-agent"))?;
    payload(&base, &bin, &agent.join(PAYLOAD))?;
    oci::write_archive(&out.join("agent.tar"), &agent_image(tag), &[&base, &agent])?;

    let scheduler = fresh(&out.join("scheduler-root"))?;
    let kubernetes = sandbox::kubernetes()?;
    install(&kubernetes.join("kube-scheduler"), &scheduler.join("usr/local/bin/kube-scheduler"))?;
    passwd(&scheduler)?;
    oci::write_archive(
        &out.join("scheduler.tar"),
        &Image {
            name: format!("{SCHEDULER}:{}", sandbox::KUBERNETES),
            entrypoint: vec!["/usr/local/bin/kube-scheduler".into()],
            user: Some("65532:65532".into()),
            ..Image::default()
        },
        &[&scheduler],
    )?;

    let examples = debian(
        &out.join("examples-base"),
        &["python3", "redis-server", "redis-tools", "dash", "coreutils"],
    )?;
    oci::write_archive(
        &out.join("examples.tar"),
        &Image { name: EXAMPLES.into(), cmd: vec!["python3".into()], ..Image::default() },
        &[&examples],
    )?;
    println!(
        "images: {}",
        archives(root).iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" ")
    );
    Ok(())
}

fn agent_image(tag: &str) -> Image {
    Image {
        name: format!("{AGENT}:{tag}"),
        entrypoint: vec!["/usr/bin/transship-agent".into()],
        ..Image::default()
    }
}

/// Directories of the agent's layers, lowest first.
fn agent_layers(root: &Path) -> [PathBuf; 2] {
    ["agent-base", "agent-root"].map(|name| root.join("target/images").join(name))
}

/// Builds the images.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the task.
pub fn run(_: Args) -> Result<ExitCode> {
    build(&layout::checkout()?)?;
    Ok(ExitCode::SUCCESS)
}

/// Compiles what ships, statically, and returns the directory with the binaries.
pub fn binaries(root: &Path) -> Result<PathBuf> {
    sandbox::ensure_tools()?;
    let status = static_cargo(root)
        .arg("build")
        .args(STATIC_BUILD)
        .args(PRODUCT)
        .status()
        .context("running cargo build")?;
    if !status.success() {
        bail!("cargo build failed");
    }
    Ok(release_dir(root))
}

/// What is compiled. Further programs are built together with it: cargo would choose other features of
/// their dependencies otherwise, and compile these once more.
pub const PRODUCT: [&str; 12] = [
    "-p",
    "transship-operator",
    "-p",
    "transship-agent",
    "-p",
    "transship-holder",
    "-p",
    "transship-shim",
    "-p",
    "kubectl-transship",
    "-p",
    "transship-tests",
];

/// How cargo builds what runs on any node, whatever libraries it has.
pub const STATIC_BUILD: [&str; 4] = ["--locked", "--release", "--target", TARGET];

/// Cargo, told to link statically. Needs [`STATIC_BUILD`]: proc macros and build scripts must stay
/// dynamic, and do so only where a target is named.
pub fn static_cargo(root: &Path) -> Command {
    let mut cargo = Command::new(crate::test::cargo_program());
    cargo.current_dir(root).env("RUSTFLAGS", "-C target-feature=+crt-static");
    cargo
}

/// Where [`binaries`] leaves them.
pub fn release_dir(root: &Path) -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    root.join(target).join(TARGET).join("release")
}

/// A root file system of Debian packages, unpacked but not configured; kept as long as the list of
/// packages is the same.
fn debian(dir: &Path, packages: &[&str]) -> Result<PathBuf> {
    let recipe = format!("{SUITE} {}", packages.join(","));
    let stamp = dir.with_extension("recipe");
    if dir.is_dir() && fs::read_to_string(&stamp).is_ok_and(|was| was == recipe) {
        return Ok(dir.to_path_buf());
    }
    let building = dir.with_extension("building");
    fresh(&building)?;
    fs::remove_dir(&building)?;
    cmd::run(
        Command::new("mmdebstrap")
            .args(["--variant=extract", "--aptopt=Acquire::Check-Valid-Until \"false\""])
            .arg(format!("--include={}", packages.join(",")))
            .arg(SUITE)
            .arg(&building)
            .arg(sandbox::debian_mirror()),
    )?;
    // What the package base-files would bring: the merged /usr.
    for name in ["bin", "sbin", "lib", "lib64"] {
        let link = building.join(name);
        if !link.exists() {
            fs::create_dir_all(building.join("usr").join(name))?;
            symlink(format!("usr/{name}"), link)?;
        }
    }
    fs::create_dir_all(building.join("tmp"))?;
    fs::set_permissions(building.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    for useless in [
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
        "var/cache/apt",
        "var/lib/apt",
        "var/log",
        "dev",
    ] {
        let path = building.join(useless);
        if path.exists() {
            fs::remove_dir_all(path)?;
        }
    }
    alternatives(&building)?;
    passwd(&building)?;
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    fs::rename(&building, dir)?;
    fs::write(stamp, recipe)?;
    Ok(dir.to_path_buf())
}

/// The links that the packages' own scripts would make when configured.
fn alternatives(root: &Path) -> Result<()> {
    let sh = root.join("usr/bin/sh");
    if !sh.exists() && root.join("usr/bin/dash").exists() {
        symlink("dash", sh)?;
    }
    Ok(())
}

fn passwd(root: &Path) -> Result<()> {
    fs::create_dir_all(root.join("etc"))?;
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/usr/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/usr/sbin/nologin\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\nnonroot:x:65532:\n")?;
    Ok(())
}

/// What the agent installs on a node: `bin` and `lib`.
fn payload(base: &Path, binaries: &Path, dir: &Path) -> Result<()> {
    for name in ["transship-runc", "transship-cni", "transship-holder", "noop"] {
        install(&binaries.join(name), &dir.join("bin").join(name))?;
    }
    let loader = "ld-linux-x86-64.so.2";
    let mut libraries = BTreeSet::new();
    for program in ["usr/sbin/criu", "usr/sbin/nft"] {
        let output = cmd::output(
            Command::new("chroot")
                .arg(base)
                .arg(format!("/lib64/{loader}"))
                .arg("--list")
                .arg(format!("/{program}")),
        )?;
        // "\tlibbsd.so.0 => /lib/x86_64-linux-gnu/libbsd.so.0 (0x…)" and the loader without "=>"
        libraries.extend(
            output
                .lines()
                .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
                .map(str::to_owned),
        );
        let name = Path::new(program).file_name().context("program")?;
        let copy = dir.join("bin").join(name);
        install(&base.join(program), &copy)?;
        cmd::run(
            Command::new("patchelf")
                .args(["--set-interpreter", &format!("{HOST_DIR}/lib/{loader}")])
                .args(["--force-rpath", "--set-rpath", &format!("{HOST_DIR}/lib")])
                .arg(&copy),
        )?;
    }
    for library in &libraries {
        let name = Path::new(library).file_name().context("library")?;
        let copy = dir.join("lib").join(name);
        install(&fs::canonicalize(base.join(library.trim_start_matches('/')))?, &copy)?;
        if name != loader {
            cmd::run(
                Command::new("patchelf")
                    .args(["--force-rpath", "--set-rpath", &format!("{HOST_DIR}/lib")])
                    .arg(&copy),
            )?;
        }
    }
    cmd::run(
        Command::new("gcc")
            .args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"])
            .arg(dir.join("lib/adopt-segments.so"))
            .arg(layout::checkout()?.join("src/criu/preload/adopt-segments.c")),
    )?;
    let version =
        cmd::output(Command::new("chroot").arg(base).args(["/usr/sbin/criu", "--version"]))?;
    if !version.contains(&format!("Version: {CRIU}")) {
        bail!(
            "Debian {SUITE} has CRIU {version:?}, the product is tested with {CRIU}: adapt images.rs"
        );
    }
    Ok(())
}

fn fresh(dir: &Path) -> Result<PathBuf> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    fs::create_dir_all(dir)?;
    Ok(dir.to_path_buf())
}

/// Copies an executable and makes the directories on the way.
fn install(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("no parent")?)?;
    fs::copy(from, to)
        .with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sandbox_runs_the_kube_scheduler_that_is_built() {
        let values = include_str!("../sandbox-assets/values.yaml");
        let image = format!("{{repository: {SCHEDULER}, tag: {}}}\n", sandbox::KUBERNETES);
        assert!(values.contains(&image), "values.yaml names another image than {image}");
    }
}
