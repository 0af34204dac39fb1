//! Programs of the host that the sandbox and the tests need; missing ones are installed with apt.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::cmd;

/// (program, packages that bring it)
const TOOLS: &[(&str, &[&str])] = &[
    ("gcc", &["gcc", "libc6-dev"]),
    ("ip", &["iproute2"]),
    ("mkfs.ext4", &["e2fsprogs"]),
    ("mmdebstrap", &["mmdebstrap", "debian-archive-keyring"]),
    ("nft", &["nftables"]),
    ("nsenter", &["util-linux"]),
    ("patchelf", &["patchelf"]),
    ("protoc", &["protobuf-compiler"]),
    ("unshare", &["util-linux"]),
];

/// Go from 1.21 on fetches the toolchain that Kubernetes asks for by itself.
const OLDEST_GO: (u32, u32) = (1, 21);

/// Installs what is missing.
pub fn ensure() -> Result<()> {
    let packages: Vec<&str> = TOOLS
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .flat_map(|(_, packages)| packages.iter().copied())
        .collect();
    if packages.is_empty() { Ok(()) } else { install(&packages) }
}

fn install(packages: &[&str]) -> Result<()> {
    let apt = |arguments: &[&str]| {
        cmd::run(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(arguments))
    };
    cmd::step(format!("installed {}", packages.join(", ")), || {
        apt(&["-o", "Acquire::Check-Valid-Until=false", "update"])?;
        apt(&[&["install", "-y", "--no-install-recommends"], packages].concat())
    })
}

fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// A Go command that can build Kubernetes.
pub fn go() -> Result<PathBuf> {
    let usual = Path::new("/usr/local/go/bin/go");
    let known = || find("go").or_else(|| usual.is_file().then(|| usual.to_owned()));
    if known().is_none() {
        install(&["golang-go"])?;
    }
    let go = known().context("Go is missing, and apt did not bring it")?;
    let version = cmd::output(Command::new(&go).arg("version"))?;
    match parse_go_version(&version) {
        Some(version) if version >= OLDEST_GO => Ok(go),
        _ => bail!(
            "{} is {}; Kubernetes needs Go {}.{} or newer (https://go.dev/dl) first on PATH",
            go.display(),
            version.trim(),
            OLDEST_GO.0,
            OLDEST_GO.1
        ),
    }
}

fn parse_go_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_whitespace().nth(2)?.strip_prefix("go")?.split('.');
    let number = |part: &str| part.chars().take_while(char::is_ascii_digit).collect::<String>();
    Some((number(numbers.next()?).parse().ok()?, number(numbers.next()?).parse().ok()?))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("go version go1.24.5 linux/amd64", Some((1, 24)))]
    #[case("go version go1.26rc1 linux/amd64", Some((1, 26)))]
    #[case("go version devel", None)]
    fn go_says_its_version(#[case] text: &str, #[case] version: Option<(u32, u32)>) {
        assert_eq!(parse_go_version(text), version);
    }
}
