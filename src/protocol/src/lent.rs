//! When an address that a pod took along to another node may be given out again by its home. In doubt it stays
//! lent. What is seen is asked in this order: the lease, the pod, its node; given back is only what the very
//! lease that was asked about still lends, since the pod may have moved on in between.

use std::net::IpAddr;

use crate::rules::{Rule, holds};

/// What a quorum read says of the pod that uses the address, by its UID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UserSeen {
    /// No pod of this UID exists.
    Gone,
    /// It says no address, and may be about to get this one, or one that cannot be read.
    Silent,
    /// The address is among those that it says.
    Uses,
    /// It says other addresses only: after a loss of power it keeps its UID, and has got another one.
    SaysOthers,
}

impl UserSeen {
    /// Of a pod that exists and says these addresses.
    pub fn saying(ip: IpAddr, said: &[String]) -> Self {
        let read: Result<Vec<IpAddr>, _> = said.iter().map(|address| address.parse()).collect();
        match read {
            Ok(addresses) if addresses.contains(&ip) => Self::Uses,
            Ok(addresses) if !addresses.is_empty() => Self::SaysOthers,
            Ok(_) | Err(_) => Self::Silent,
        }
    }
}

/// What the user's node says of its sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SandboxSeen {
    /// Nobody can tell.
    Unknown,
    /// It may still answer under the address.
    There,
    /// Nothing there has the address, or an administrator vouches that the node does not run by having
    /// removed its object.
    Free,
}

/// The address may be given out again. A pod's object can be deleted by force while its sandbox still
/// answers; but kubelet makes another sandbox only when the one before is off the network, so a pod that
/// says other addresses has left this one wherever nobody knows better.
pub fn may_give_back(user: UserSeen, sandbox: SandboxSeen) -> bool {
    match user {
        UserSeen::Gone => sandbox == SandboxSeen::Free || !holds(Rule::GoneNeedsItsSandboxGone),
        UserSeen::SaysOthers => sandbox != SandboxSeen::There && holds(Rule::LeavingGivesBack),
        UserSeen::Silent => !holds(Rule::SilenceKeepsTheAddress),
        UserSeen::Uses => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_left_an_address_when_it_says_others_only() {
        let ip = IpAddr::from([10, 0, 0, 4]);
        for (said, seen) in [
            (vec!["10.0.0.9"], UserSeen::SaysOthers),
            (vec!["10.0.0.9", "fd00::9"], UserSeen::SaysOthers),
            (vec!["10.0.0.4"], UserSeen::Uses),
            (vec!["fd00::9", "10.0.0.4"], UserSeen::Uses),
            (vec![], UserSeen::Silent),
            (vec!["10.0.0.9", "none"], UserSeen::Silent),
        ] {
            let said: Vec<String> = said.into_iter().map(str::to_owned).collect();
            assert_eq!(UserSeen::saying(ip, &said), seen, "{said:?}");
        }
    }

    #[test]
    fn in_doubt_an_address_stays_lent() {
        use SandboxSeen::{Free, There, Unknown};
        for (user, over) in [
            (UserSeen::Gone, [false, false, true]),
            (UserSeen::Silent, [false, false, false]),
            (UserSeen::Uses, [false, false, false]),
            (UserSeen::SaysOthers, [true, false, true]),
        ] {
            assert_eq!([Unknown, There, Free].map(|sandbox| may_give_back(user, sandbox)), over);
        }
    }
}
