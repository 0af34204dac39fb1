//! Closing a pod's network: an nftables table of the netdev family in the pod's own namespace loses every
//! frame at the device, in both directions. That is below IP, so ARP and neighbour discovery are dropped too,
//! and it is independent of what CRIU does to the network; the loopback device stays as it is.
//!
//! Each change is one transaction, so there is no moment in between, and repeating one is fine.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};
use crate::paths::HostRoot;
use crate::record::check_interface;

use super::NetNs;

/// The table's name; the family is netdev.
pub const TABLE: &str = "transship";

/// Loses a frame as a wire would, so that the socket that sent it takes it for sent: forwarded to the device of
/// index 0, which never exists.
///
/// Of a frame that is dropped on the way out the sender is told, as of local congestion. TCP then has not sent it: it
/// tries twice a second, counts each try as a window probe without an answer, and ends the connection at the 15th
/// (`net.ipv4.tcp_retries2`), so after eight seconds. What it has sent it sends again for a quarter of an hour.
///
/// A kernel without `CONFIG_NFT_FWD_NETDEV` refuses it; there the frame is dropped.
const LOST: &str = "fwd to 0;";

/// The nft program: the installed one, or the one on PATH.
pub fn nft_program(host: &HostRoot) -> PathBuf {
    let installed = host.bin("nft");
    if installed.exists() { installed } else { PathBuf::from("nft") }
}

impl NetNs {
    /// Drops every frame on `devices`, both ways.
    pub fn close(&self, nft: &Path, devices: &[String]) -> Result<()> {
        self.apply_losing(nft, |lost| closed_rules(devices, lost))
    }

    /// Lets all frames pass again. A namespace that is gone is open.
    pub fn open(&self, nft: &Path) -> Result<()> {
        if !self.exists() {
            return Ok(());
        }
        self.apply(nft, &open_rules())
    }

    /// Lets only a TCP connection's end out, and in what may be answered with it, with the address resolution
    /// that both need; what else comes or goes is dropped. Undone by [`NetNs::open`].
    ///
    /// A peer that has missed an answer asks back before it believes a reset (RFC 5961, section 3.2), and one that
    /// has missed the reset sends its request again.
    pub fn let_resets_out(&self, nft: &Path, devices: &[String]) -> Result<()> {
        self.apply_losing(nft, |lost| reset_rules(devices, lost))
    }

    /// Drops frames that ask for a new TCP connection into the pod; everything else passes. Replaced by
    /// [`NetNs::close`] and undone by [`NetNs::open`].
    pub fn drop_new_syns(&self, nft: &Path, devices: &[String]) -> Result<()> {
        self.apply(nft, &no_syn_rules(devices)?)
    }

    /// Whether all of `devices` are closed in both directions.
    pub fn is_closed(&self, nft: &Path, devices: &[String]) -> Result<bool> {
        let output = self.enter(|| {
            Command::new(nft)
                .args(["list", "table", "netdev", TABLE])
                .stdin(Stdio::null())
                .output()
                .map_err(Error::io("run", nft))
        })?;
        if output.status.success() {
            return Ok(drops_all(&String::from_utf8_lossy(&output.stdout), devices));
        }
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if message.contains("No such file") {
            return Ok(false);
        }
        Err(Error::Program { program: nft.display().to_string(), message })
    }

    /// Applies rules that are made with [`LOST`], or without it where that is not possible.
    fn apply_losing(&self, nft: &Path, rules: impl Fn(&str) -> Result<String>) -> Result<()> {
        match self.apply(nft, &rules(LOST)?) {
            Err(Error::Program { .. }) => self.apply(nft, &rules("")?),
            result => result,
        }
    }

    fn apply(&self, nft: &Path, rules: &str) -> Result<()> {
        self.enter(|| run(nft, rules))
    }
}

fn run(nft: &Path, rules: &str) -> Result<()> {
    let failed = |message: String| Error::Program { program: nft.display().to_string(), message };
    let mut child = Command::new(nft)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::io("run", nft))?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(rules.as_bytes()).map_err(Error::io("write rules to", nft))?;
    }
    let output = child.wait_with_output().map_err(Error::io("wait for", nft))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(failed(if message.is_empty() { output.status.to_string() } else { message }))
}

/// `add` before `delete` makes removing a table that is not there succeed.
fn open_rules() -> String {
    format!("add table netdev {TABLE}\ndelete table netdev {TABLE}\n")
}

fn closed_rules(devices: &[String], lost: &str) -> Result<String> {
    let out = format!("policy drop; {lost}");
    table(devices, &[("ingress", "policy drop;"), ("egress", &out)])
}

fn no_syn_rules(devices: &[String]) -> Result<String> {
    table(devices, &[("ingress", "policy accept; tcp flags & (syn | ack) == syn drop;")])
}

fn reset_rules(devices: &[String], lost: &str) -> Result<String> {
    const NEIGHBOURS: &str = "policy drop; ether type arp accept; \
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept;";
    let into = format!("{NEIGHBOURS} tcp flags & (syn | ack) == ack accept;");
    let out = format!("{NEIGHBOURS} tcp flags & rst == rst accept; {lost}");
    table(devices, &[("ingress", &into), ("egress", &out)])
}

/// A chain for each device and hook, with the hook's rules.
fn table(devices: &[String], hooks: &[(&str, &str)]) -> Result<String> {
    let mut text = open_rules();
    let _ = writeln!(text, "table netdev {TABLE} {{");
    for (index, device) in devices.iter().enumerate() {
        check_interface(device)?;
        for (hook, body) in hooks {
            let _ = writeln!(
                text,
                "  chain {hook}{index} {{ type filter hook {hook} device \"{device}\" priority -500; {body} }}"
            );
        }
    }
    text.push_str("}\n");
    Ok(text)
}

/// Whether nft's listing of the table has a dropping chain for each device and direction.
fn drops_all(listing: &str, devices: &[String]) -> bool {
    let has = |device: &str, hook: &str| {
        let quoted = format!("\"{device}\"");
        listing.lines().any(|line| {
            line.contains(&format!("hook {hook} "))
                && line.contains(&quoted)
                && line.contains("policy drop")
        })
    };
    devices.iter().all(|device| has(device, "ingress") && has(device, "egress"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn closing_drops_both_ways_on_each_device_in_one_transaction() {
        assert_eq!(
            closed_rules(&names(&["eth0", "net1"]), LOST).unwrap(),
            "add table netdev transship\n\
             delete table netdev transship\n\
             table netdev transship {\n\
             \x20 chain ingress0 { type filter hook ingress device \"eth0\" priority -500; policy drop; }\n\
             \x20 chain egress0 { type filter hook egress device \"eth0\" priority -500; policy drop; fwd to 0; }\n\
             \x20 chain ingress1 { type filter hook ingress device \"net1\" priority -500; policy drop; }\n\
             \x20 chain egress1 { type filter hook egress device \"net1\" priority -500; policy drop; fwd to 0; }\n\
             }\n"
        );
    }

    #[test]
    fn a_device_name_cannot_smuggle_rules_in() {
        assert!(closed_rules(&names(&["eth0\" ; }"]), LOST).is_err());
        assert!(no_syn_rules(&names(&["a b"])).is_err());
        assert!(reset_rules(&names(&["a b"]), LOST).is_err());
    }

    #[test]
    fn a_listing_counts_only_if_every_device_is_dropped_both_ways() {
        let listing = "table netdev transship {\n\tchain ingress0 {\n\t\ttype filter hook ingress device \"eth0\" priority -500; policy drop;\n\t}\n\n\tchain egress0 {\n\t\ttype filter hook egress device \"eth0\" priority -500; policy drop;\n\t\tfwd to 0\n\t}\n}\n";
        assert!(drops_all(listing, &names(&["eth0"])));
        assert!(!drops_all(listing, &names(&["eth0", "eth1"])));
        assert!(!drops_all(&listing.replace("egress", "other"), &names(&["eth0"])));
        assert!(!drops_all(&listing.replace("drop", "accept"), &names(&["eth0"])));
        assert!(!drops_all("", &names(&["eth0"])));
    }
}
