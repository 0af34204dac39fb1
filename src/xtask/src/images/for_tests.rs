//! Images that only tests need. They lie beside the others, in directories of their own, so that only those tests
//! load them.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{PAYLOAD, SUITE, agent_image, agent_layers, debian, fresh, install};
use crate::{
    oci::{self, Image},
    sandbox::cmd,
};

/// Tag of the [`agent_with_other_programs`], and the word with which each of these ends.
pub const OTHER_PROGRAMS: &str = "other-programs";

/// Real applications, for the tests that move them.
const APPLICATIONS: &str = "localhost/transship-applications:1";
const APPLICATION_PACKAGES: [&str; 24] = [
    "apache2-bin",
    "coreutils",
    "dash",
    "default-jre-headless",
    "etcd-server",
    "grep",
    "gunicorn",
    "hostname",
    "libapache2-mod-php",
    "mariadb-client-core",
    "mariadb-server-core",
    "memcached",
    "nats-server",
    "nginx-light",
    "nodejs",
    "postgresql-18",
    "procps",
    "python3",
    "rabbitmq-server",
    "redis-server",
    "redis-tools",
    "sed",
    "tomcat11-common",
    "zstd",
];

/// Makes another image of the agent that was built, for the tests that upgrade the chart, and returns its archive:
/// all that it puts on a node (programs and libraries) are other files that do the same, since nobody looks at what
/// follows an ELF file's own parts.
pub fn agent_with_other_programs(root: &Path) -> Result<PathBuf> {
    let out = root.join("target/other-programs");
    let [base, agent] = agent_layers(root);
    let others = fresh(&out.join("root"))?;
    for part in ["bin", "lib"] {
        let place = Path::new(PAYLOAD).join(part);
        let from = agent.join(&place);
        for entry in fs::read_dir(&from).with_context(|| format!("reading {}", from.display()))? {
            let first = entry?.path();
            let other = others.join(&place).join(first.file_name().context("no name")?);
            install(&first, &other)?;
            let append = || {
                fs::File::options().append(true).open(&other)?.write_all(OTHER_PROGRAMS.as_bytes())
            };
            append().with_context(|| format!("writing {}", other.display()))?;
        }
    }
    let archive = out.join("agent.tar");
    oci::write_archive(&archive, &agent_image(OTHER_PROGRAMS), &[&base, &agent, &others])?;
    Ok(archive)
}

/// Builds the image of the applications, which is large, where it is not there yet, and returns its archive.
pub fn applications(root: &Path) -> Result<PathBuf> {
    let out = root.join("target/applications");
    let archive = out.join("applications.tar");
    let source = root.join("tests/applications/files/threads.c");
    let made_of = format!(
        "{SUITE} {} {}",
        APPLICATION_PACKAGES.join(","),
        oci::digest(&fs::read(&source).with_context(|| format!("reading {}", source.display()))?)
    );
    let stamp = archive.with_extension("made-of");
    if archive.is_file() && fs::read_to_string(&stamp).is_ok_and(|was| was == made_of) {
        return Ok(archive);
    }
    fs::create_dir_all(&out)?;
    let packages = debian(&out.join("base"), &APPLICATION_PACKAGES)?;
    let own = fresh(&out.join("root"))?;
    fs::create_dir_all(own.join("usr/bin"))?;
    cmd::run(
        Command::new("gcc")
            .args(["-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-o"])
            .args([&own.join("usr/bin/threads"), &source]),
    )?;
    let image = Image { name: APPLICATIONS.into(), ..Image::default() };
    oci::write_archive(&archive, &image, &[&packages, &own])?;
    fs::write(stamp, made_of)?;
    Ok(archive)
}
