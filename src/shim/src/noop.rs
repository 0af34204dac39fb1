//! Init containers of a target pod: their work was done in the source and moves with its files, so kubelet
//! is shown a container that succeeds at once.
//!
//! The bundle's program becomes a static one that is mounted into the container; everything else (mounts,
//! user, namespaces) stays, and so does the image.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use transship_host::error::{Error, Result};
use transship_host::{HostRoot, files};

/// Where the program appears: on the container's own /dev, so that nothing is left in its root file system.
const MOUNTED_AT: &str = "/dev/.transship-noop";

/// Rewrites `config.json` of the bundle.
pub(crate) fn replace_program(host: &HostRoot, bundle: &Path) -> Result<()> {
    edit_config(bundle, |config| with_noop(config, &host.bin("noop")))
}

/// Reads, changes and replaces `config.json` of a bundle.
pub(crate) fn edit_config(bundle: &Path, change: impl FnOnce(&mut Value)) -> Result<()> {
    let path = bundle.join("config.json");
    let mut config: Value = files::read_json(&path)?;
    change(&mut config);
    let text = serde_json::to_vec(&config)
        .map_err(|source| Error::Damaged { path: path.clone(), source })?;
    // Not fsynced: a bundle does not outlive the boot.
    let temporary = bundle.join(format!(".config.json.{}", std::process::id()));
    fs::write(&temporary, text).map_err(Error::io("write", &temporary))?;
    fs::rename(&temporary, &path).map_err(Error::io("replace", &path))
}

fn with_noop(config: &mut Value, program: &Path) {
    config["process"]["args"] = json!([MOUNTED_AT]);
    let mount = json!({
        "destination": MOUNTED_AT,
        "type": "bind",
        "source": program,
        "options": ["bind", "ro", "nosuid", "nodev"],
    });
    match config["mounts"].as_array_mut() {
        Some(mounts) => mounts.push(mount),
        None => config["mounts"] = json!([mount]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_program_and_one_mount_change() {
        let dir = tempfile::tempdir().unwrap();
        let before = json!({
            "process": {"args": ["/setup", "--all"], "cwd": "/", "user": {"uid": 5}},
            "mounts": [{"destination": "/proc"}],
            "linux": {"cgroupsPath": "/x", "resources": {"memory": {"limit": 9_223_372_036_854_771_712u64}}},
        });
        fs::write(dir.path().join("config.json"), before.to_string()).unwrap();
        replace_program(&HostRoot::host(), dir.path()).unwrap();
        let after: Value = files::read_json(&dir.path().join("config.json")).unwrap();
        assert_eq!(after["process"]["args"], json!(["/dev/.transship-noop"]));
        assert_eq!(after["process"]["user"], before["process"]["user"]);
        assert_eq!(after["linux"], before["linux"]);
        assert_eq!(after["mounts"][0], before["mounts"][0]);
        assert_eq!(after["mounts"][1]["source"], "/opt/transship/bin/noop");
        assert_eq!(after["mounts"].as_array().unwrap().len(), 2);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }
}
