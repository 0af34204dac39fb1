//! What the installed CRIU and the kernel offer: `criu check`, run on the host.

use std::time::Duration;

use transship_api::conditions::reasons;
use transship_host::HostRoot;

use crate::hostns::HostNs;

/// Features asked for one by one, as `criu check --feature` names them. Reported are those found;
/// what a mode of moving needs of them is decided by whoever chooses the mode.
pub const FEATURES: [&str; 22] = [
    "apparmor_stacking",
    "clone3_set_tid",
    "compel",
    "external_net_ns",
    "fdinfo_lock",
    "get_rseq_conf",
    "has_ipt_legacy",
    "ipv6_freebind",
    "kcmp",
    "link_nsid",
    "mem_dirty_track",
    "move_mount_set_group",
    "network_lock_nftables",
    "openat2",
    "overlayfs_maps",
    "pagemap_scan",
    "pidfd_store",
    "rseq",
    "seccomp_filters",
    "timens",
    "uffd-noncoop",
    "userns",
];

/// The oldest CRIU that moves TCP connections on current kernels.
pub const OLDEST: (u32, u32) = (4, 2);

/// How long one check may take.
const LIMIT: Duration = Duration::from_secs(20);

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Such as 4.2.1; empty when CRIU does not run.
    pub version: String,
    /// Those of [`FEATURES`] that were found.
    pub features: Vec<String>,
    /// Nothing, or reason and message of what is missing.
    pub problem: Option<(&'static str, String)>,
}

impl Probe {
    /// How changed pages can be found.
    pub fn page_tracking(&self) -> &'static str {
        let has = |feature: &str| self.features.iter().any(|found| found == feature);
        match (has("pagemap_scan"), has("mem_dirty_track")) {
            (true, _) => "PagemapScan",
            (false, true) => "SoftDirty",
            (false, false) => "None",
        }
    }
}

/// Runs the installed CRIU.
pub async fn probe(hostns: &HostNs) -> Probe {
    let program = HostRoot::host().bin("criu");
    let criu = program.to_string_lossy();
    let mut found = Probe { version: String::new(), features: Vec::new(), problem: None };
    let failed = |message: String| Some((reasons::CRIU_CHECK_FAILED, message));
    match hostns.run(&[&criu, "--version"], LIMIT).await {
        Ok(output) if output.success => found.version = version(&output.stdout),
        Ok(output) => {
            let said = output.complaint();
            found.problem = failed(format!("{criu} does not run: {said}; reinstall the agent"));
            return found;
        }
        Err(error) => {
            found.problem = failed(format!("{error}; reinstall the agent"));
            return found;
        }
    }
    if !is_new_enough(&found.version) {
        found.problem = failed(format!(
            "CRIU {} is too old; {}.{} or newer is needed, so use an agent image that carries one",
            found.version, OLDEST.0, OLDEST.1
        ));
    } else {
        match hostns.run(&[&criu, "check"], LIMIT).await {
            Ok(output) if output.success => {}
            Ok(output) => {
                found.problem = Some((reasons::KERNEL_TOO_OLD, explain(&output.stderr)));
            }
            Err(error) => found.problem = failed(error.to_string()),
        }
    }
    for feature in FEATURES {
        // A name that this CRIU does not know counts as not found.
        let asked = hostns.run(&[&criu, "check", "--feature", feature], LIMIT).await;
        if asked.is_ok_and(|output| output.success) {
            found.features.push(feature.to_owned());
        }
    }
    found
}

/// `Version: 4.2.1` in the first lines.
fn version(text: &str) -> String {
    text.lines()
        .find_map(|line| line.strip_prefix("Version:"))
        .map(|version| version.trim().chars().take(64).collect())
        .unwrap_or_default()
}

fn is_new_enough(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= OLDEST
}

/// The errors of a failed check in one sentence.
fn explain(stderr: &str) -> String {
    let errors: Vec<&str> = stderr
        .lines()
        .filter(|line| line.contains("Error"))
        .filter_map(|line| line.split_once("): ").map(|(_, message)| message.trim()))
        .take(3)
        .collect();
    let what = if errors.is_empty() { "no message".to_owned() } else { errors.join("; ") };
    format!("`criu check` fails on this kernel: {what}; use a kernel with these features")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        assert_eq!(version("Version: 4.2.1\nGitID: v4.2.1\n"), "4.2.1");
        assert_eq!(version("what"), "");
        for (text, enough) in [
            ("4.2", true),
            ("4.2.1", true),
            ("5.0", true),
            ("4.1.1", false),
            ("3.17.1", false),
            ("", false),
        ] {
            assert_eq!(is_new_enough(text), enough, "{text}");
        }
    }

    #[test]
    fn a_failed_check_is_told_in_one_sentence() {
        let text = "Error (criu/cr-check.c:1): Dirty tracking is OFF\nWarn (x): no\n";
        let told = explain(text);
        assert!(told.contains("Dirty tracking is OFF") && !told.contains("Warn"), "{told}");
    }

    #[test]
    fn the_best_way_to_find_changed_pages_is_named() {
        let probe = |features: &[&str]| Probe {
            version: String::new(),
            features: features.iter().map(|f| (*f).to_owned()).collect(),
            problem: None,
        };
        assert_eq!(probe(&["mem_dirty_track", "pagemap_scan"]).page_tracking(), "PagemapScan");
        assert_eq!(probe(&["mem_dirty_track"]).page_tracking(), "SoftDirty");
        assert_eq!(probe(&[]).page_tracking(), "None");
    }
}
