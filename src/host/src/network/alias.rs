//! Former addresses of a moved pod: sockets stay bound to an address although the pod has another one by now.
//! They live on the loopback device, so nobody outside is told about them, or gets an answer for them.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::record::check_interface;

use super::{Address, Interface, NetNs};

const LOOPBACK: &str = "lo";

impl NetNs {
    /// Lets sockets of this namespace be bound to `ips`. `interface` is the pod's own, which from then on
    /// speaks ARP for its own addresses alone. Repeating it is fine.
    pub fn add_aliases(&self, interface: &str, ips: &[IpAddr]) -> Result<()> {
        check_interface(interface)?;
        if ips.is_empty() {
            return Ok(());
        }
        self.enter(|| {
            // IPv6 never answers for addresses of another interface.
            for (setting, value) in [("arp_ignore", "1"), ("arp_announce", "2")] {
                let path = PathBuf::from(format!("/proc/sys/net/ipv4/conf/{interface}/{setting}"));
                fs::write(&path, value).map_err(Error::io("write", &path))?;
            }
            let loopback = Interface::find(LOOPBACK)?;
            ips.iter().try_for_each(|ip| loopback.add_address(host_address(*ip)))
        })
    }

    /// Takes an alias away, if it is there.
    pub fn remove_alias(&self, ip: IpAddr) -> Result<()> {
        self.enter(|| {
            let loopback = Interface::find(LOOPBACK)?;
            match loopback.addresses()?.contains(&host_address(ip)) {
                true => loopback.remove_address(host_address(ip)),
                false => Ok(()),
            }
        })
    }
}

fn host_address(ip: IpAddr) -> Address {
    Address { ip, prefix: if ip.is_ipv4() { 32 } else { 128 } }
}
