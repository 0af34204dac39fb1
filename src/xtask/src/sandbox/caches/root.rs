//! Root file system of all machines: Debian with container tools, made by mmdebstrap.
//!
//! forky, since older releases have a CRIU that does not run on new kernels.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use super::{cmd, compile, layout, short_digest};

const SUITE: &str = "forky";
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";
const PACKAGES: &str = "busybox-static,ca-certificates,conntrack,containerd,\
    containernetworking-plugins,criu,curl,etcd-server,iproute2,iptables,kmod,mount,nftables,procps,\
    python3-minimal,runc,util-linux";
/// Counts changes of the code below.
const REVISION: &str = "2";
const PRLIMIT: &str = include_str!("../../../sandbox-assets/prlimit.c");

/// What the directory is made from.
pub fn key() -> String {
    format!("root {}", short_digest(&[SUITE, PACKAGES, REVISION, PRLIMIT]))
}

/// Makes the root if it is missing.
pub fn ensure() -> Result<PathBuf> {
    let root = layout::cache(&key().replace(' ', "-"));
    if root.exists() {
        return Ok(root);
    }
    cmd::step("made the nodes' root file system", || {
        let partial = root.with_extension("partial");
        match fs::remove_dir_all(&partial) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        cmd::run(
            Command::new("mmdebstrap")
                // Mirrors that are kept as they were on a day count as expired.
                .args(["--variant=apt", "--aptopt=Acquire::Check-Valid-Until \"false\""])
                .arg(format!("--include={PACKAGES}"))
                .args([SUITE.as_ref(), partial.as_os_str()])
                .arg(mirror()),
        )?;
        // Every machine has its own copy of /var; most of its files are the packages' lists.
        for unused in ["var/lib/dpkg/info", "var/cache/debconf"] {
            fs::remove_dir_all(partial.join(unused))?;
            fs::create_dir(partial.join(unused))?;
        }
        // Machines without CAP_SYS_RESOURCE cannot dump processes of other users; see prlimit.c.
        let library = "usr/local/lib/sandbox-prlimit.so";
        compile(PRLIMIT, &partial.join(library), &["-shared", "-fPIC"])?;
        cmd::write_file(&partial.join("etc/ld.so.preload"), format!("/{library}\n"), 0o644)?;
        fs::rename(&partial, &root)?;
        Ok(root)
    })
    .context("making the nodes' root file system")
}

/// The mirror that this machine uses.
pub fn mirror() -> String {
    let sources = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    sources
        .iter()
        .find_map(|file| parse_mirror(&fs::read_to_string(file).ok()?))
        .unwrap_or_else(|| DEFAULT_MIRROR.to_owned())
}

fn parse_mirror(sources: &str) -> Option<String> {
    sources
        .lines()
        .filter(|line| line.starts_with("URIs:") || line.starts_with("deb "))
        .find_map(|line| line.split_whitespace().find(|word| word.contains("://")))
        .map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("Types: deb\n# old\nURIs: http://a/debian\nSuites: x\n", Some("http://a/debian"))]
    #[case(
        "# deb http://no/\ndeb [trusted=yes] https://b/debian forky main",
        Some("https://b/debian")
    )]
    #[case("", None)]
    fn the_mirror_is_the_first_of_the_sources(#[case] text: &str, #[case] mirror: Option<&str>) {
        assert_eq!(parse_mirror(text).as_deref(), mirror);
    }
}
