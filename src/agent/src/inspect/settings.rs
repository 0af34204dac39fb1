//! What somebody can set in a network namespace beside addresses, links and routes: queueing disciplines, static
//! neighbours, IPsec. Asked of the kernel's netlink from within.

use std::net::IpAddr;

use rustix::net::netlink;
use transship_core::facts::{CniFacts, MAX_SETTINGS};

use super::netlink::{address, attributes, dump, name, or_nothing, u16_at, u32_at};

const RTM_GETNEIGH: u16 = 30;
const RTM_GETQDISC: u16 = 38;
const XFRM_MSG_GETSA: u16 = 0x12;
const XFRM_MSG_GETPOLICY: u16 = 0x15;
/// Length of `tcmsg`.
const DISCIPLINE_MESSAGE: usize = 20;
/// Length of `ndmsg`, and where its flags stand.
const NEIGHBOUR_MESSAGE: usize = 12;
const NEIGHBOUR_FLAGS: usize = 10;
const NTF_PROXY: u8 = 8;

/// Types of the CNI plugins that are known to set nothing of this in a pod, but for the way to its gateway. What
/// others set (`tuning` parameters, and some clouds' disciplines and neighbours) is set on the target as well, and
/// cannot be told from what somebody set.
const PLAIN: [&str; 11] = [
    "bandwidth",
    "bridge",
    "calico",
    "firewall",
    "flannel",
    "host-device",
    "ipvlan",
    "macvlan",
    "portmap",
    "ptp",
    "transship-cni",
];

/// Whether what is set in a node's pods was set by none of its plugins.
pub fn are_plain(cni: &CniFacts) -> bool {
    cni.plugins.iter().all(|plugin| PLAIN.contains(&plugin.as_str()))
}

/// What was set; of each kind at most [`MAX_SETTINGS`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Queueing disciplines by kind and device. Every filter and class has one.
    pub disciplines: Vec<String>,
    pub neighbours: Vec<Neighbour>,
    /// States and policies.
    pub ipsec: Vec<String>,
}

/// A neighbour that stays, or for which the namespace answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    pub ip: IpAddr,
    /// With its device.
    pub text: String,
}

/// Those of the calling thread's network namespace, what the kernel makes by itself left out.
pub fn settings() -> std::io::Result<Settings> {
    let mut found = Settings::default();
    or_nothing(dump(None, RTM_GETQDISC, &[0; DISCIPLINE_MESSAGE], |message| {
        keep(&mut found.disciplines, || discipline(message));
    }))?;
    // Those for which it answers are told only where they alone are asked for.
    for flags in [0, NTF_PROXY] {
        let mut request = [0; NEIGHBOUR_MESSAGE];
        request[NEIGHBOUR_FLAGS] = flags;
        or_nothing(dump(None, RTM_GETNEIGH, &request, |message| {
            keep(&mut found.neighbours, || neighbour(message));
        }))?;
    }
    or_nothing(dump(Some(netlink::XFRM), XFRM_MSG_GETSA, &[], |message| {
        keep(&mut found.ipsec, || state(message));
    }))?;
    or_nothing(dump(Some(netlink::XFRM), XFRM_MSG_GETPOLICY, &[], |message| {
        keep(&mut found.ipsec, || policy(message));
    }))?;
    Ok(found)
}

/// Whoever set them decides how many there are.
fn keep<T>(found: &mut Vec<T>, read: impl FnOnce() -> Option<T>) {
    if found.len() < MAX_SETTINGS {
        found.extend(read());
    }
}

/// The kernel gives a handle to each that somebody makes, and none to those that it makes by itself.
fn discipline(message: &[u8]) -> Option<String> {
    const KIND: u16 = 1;
    let index = u32_at(message, 4)?;
    if u32_at(message, 8)? == 0 {
        return None;
    }
    let (_, kind) = attributes(message.get(DISCIPLINE_MESSAGE..)?).find(|(of, _)| *of == KIND)?;
    Some(format!("{} dev {}", name(kind), device(index)))
}

/// The kernel's own, of groups and of devices without hardware addresses, need no resolution (`NUD_NOARP`) and are
/// not permanent.
fn neighbour(message: &[u8]) -> Option<Neighbour> {
    const DESTINATION: u16 = 1;
    const NUD_PERMANENT: u16 = 0x80;
    let index = u32_at(message, 4)?;
    let is_permanent = u16_at(message, 8)? & NUD_PERMANENT != 0;
    let is_proxy = message.get(NEIGHBOUR_FLAGS)? & NTF_PROXY != 0;
    if !is_permanent && !is_proxy {
        return None;
    }
    let mut attributes = attributes(message.get(NEIGHBOUR_MESSAGE..)?);
    let (_, destination) = attributes.find(|(of, _)| *of == DESTINATION)?;
    let ip = address(destination)?;
    let proxy = if is_proxy { "proxy " } else { "" };
    Some(Neighbour { ip, text: format!("{proxy}{ip} dev {}", device(index)) })
}

/// `xfrm_usersa_info`: the destination of the identity after the selector, and the family after all counters.
fn state(message: &[u8]) -> Option<String> {
    let to = of_family(message.get(56..72)?, u16_at(message, 212)?)?;
    Some(format!("state to {to}"))
}

/// `xfrm_userpolicy_info`, which begins with the selector.
fn policy(message: &[u8]) -> Option<String> {
    let family = u16_at(message, 40)?;
    let to = of_family(message.get(..16)?, family)?;
    let from = of_family(message.get(16..32)?, family)?;
    let (to_length, from_length) = (message.get(42)?, message.get(43)?);
    Some(format!("policy from {from}/{from_length} to {to}/{to_length}"))
}

/// `xfrm_address_t` has room for either family.
fn of_family(bytes: &[u8], family: u16) -> Option<IpAddr> {
    const AF_INET: u16 = 2;
    address(if family == AF_INET { bytes.get(..4)? } else { bytes })
}

fn device(index: u32) -> String {
    match nix::net::if_::if_indextoname(index) {
        Ok(name) => name.to_string_lossy().into_owned(),
        // It has gone meanwhile.
        Err(_) => format!("number {index}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::network::in_new_namespace;
    use super::*;

    /// The loopback device has this number in every namespace.
    const LO: u32 = 1;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_discipline_that_somebody_made_has_a_handle() {
        let message = |handle: u32, kind: &[u8]| {
            let numbers = [0, LO, handle, u32::MAX, 2].map(u32::to_ne_bytes).concat();
            [numbers, attribute(1, kind), attribute(2, &[0; 8])].concat()
        };
        assert_eq!(discipline(&message(0, b"noqueue\0")), None);
        assert_eq!(discipline(&message(0x8001_0000, b"tbf\0")).unwrap(), "tbf dev lo");
        assert_eq!(discipline(&message(0xffff_0000, b"ingress\0")).unwrap(), "ingress dev lo");
        assert_eq!(discipline(&[0; 8]), None);
    }

    #[test]
    fn neighbours_are_told_that_stay_or_are_answered_for() {
        let message = |state: u16, flags: u8, ip: &[u8]| {
            let mut bytes = vec![2, 0, 0, 0];
            bytes.extend(LO.to_ne_bytes());
            bytes.extend(state.to_ne_bytes());
            bytes.extend([flags, 1]);
            [bytes, attribute(1, ip), attribute(2, &[2, 0, 0, 0, 0, 9])].concat()
        };
        let text = |message: &[u8]| neighbour(message).map(|neighbour| neighbour.text);
        assert_eq!(text(&message(0x80, 0, &[10, 1, 9, 9])).unwrap(), "10.1.9.9 dev lo");
        let v6 = "fd00::9".parse::<std::net::Ipv6Addr>().unwrap().octets();
        assert_eq!(text(&message(0x80, 0, &v6)).unwrap(), "fd00::9 dev lo");
        assert_eq!(text(&message(0, NTF_PROXY, &[10, 1, 9, 7])).unwrap(), "proxy 10.1.9.7 dev lo");
        // Reachable, stale, and the kernel's own.
        for state in [0x02, 0x04, 0x40] {
            assert_eq!(text(&message(state, 0, &[10, 1, 9, 9])), None);
        }
        assert_eq!(text(&message(0x80, 0, &[10, 1])), None);
        assert_eq!(text(&[0; 4]), None);
    }

    #[test]
    fn states_and_policies_are_told_by_whom_they_concern() {
        let mut found = vec![0; 168];
        found[..4].copy_from_slice(&[10, 8, 0, 0]);
        found[16..20].copy_from_slice(&[10, 9, 0, 0]);
        found[40..42].copy_from_slice(&2u16.to_ne_bytes());
        found[42..44].copy_from_slice(&[16, 24]);
        assert_eq!(policy(&found).unwrap(), "policy from 10.9.0.0/24 to 10.8.0.0/16");
        found[40..42].copy_from_slice(&10u16.to_ne_bytes());
        assert_eq!(policy(&found).unwrap(), "policy from a09::/24 to a08::/16");
        assert_eq!(policy(&found[..20]), None);

        let mut found = vec![0; 224];
        found[56..60].copy_from_slice(&[10, 1, 0, 3]);
        found[212..214].copy_from_slice(&2u16.to_ne_bytes());
        assert_eq!(state(&found).unwrap(), "state to 10.1.0.3");
        assert_eq!(state(&found[..100]), None);
    }

    #[test]
    fn no_more_is_kept_than_is_told() {
        let mut found = Vec::new();
        (0..MAX_SETTINGS + 9).for_each(|n| keep(&mut found, || (n % 2 == 0).then_some(n)));
        assert_eq!(found.len(), MAX_SETTINGS / 2 + 5);
        (0..MAX_SETTINGS).for_each(|n| keep(&mut found, || Some(n)));
        assert_eq!(found.len(), MAX_SETTINGS);
    }

    #[test]
    fn what_a_plugin_sets_that_is_not_known_is_not_taken_for_somebodys() {
        let of = |plugins: &[&str]| {
            let plugins = plugins.iter().map(|plugin| (*plugin).to_owned()).collect();
            are_plain(&CniFacts { plugins, ..CniFacts::default() })
        };
        assert!(of(&["bridge", "portmap", "transship-cni"]));
        assert!(!of(&["bridge", "tuning", "transship-cni"]));
        assert!(!of(&["terway"]));
    }

    #[test]
    fn in_a_new_namespace_nothing_is_set() {
        // Needs the right to make namespaces; without it the error says so.
        match in_new_namespace(settings) {
            Ok(found) => assert_eq!(found, Settings::default()),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied),
        }
    }
}
