//! Ports of the host that are to be free: those that are bound, or in the host's network those that
//! are exposed. Protocols are not compared where ports are bound.

use super::{Compiled, Condition, Test};
use crate::placement::model::{Network, Request};

pub(super) fn compile(request: &Request) -> Compiled {
    let (conditions, listing) = match request.network {
        Network::Host => request.exposed.iter().map(|port| exposed(port)).unzip(),
        Network::Bridge | Network::Container(_) => request
            .ports
            .iter()
            .map(|binding| {
                let port = &binding.host_port;
                let reason = format!("unable to find a node with port {port} available");
                let test = Test::PortUnbound(binding.clone());
                (Condition::hard(test, reason), format!("port {port} (Bridge mode)"))
            })
            .unzip(),
    };
    Compiled { conditions, listing: Ok(listing) }
}

fn exposed(port: &str) -> (Condition, String) {
    let reason = format!("unable to find a node with port {port} available in the Host mode");
    let test = Test::PortNotExposed(port.to_owned());
    (Condition::hard(test, reason), format!("port {port} (Host mode)"))
}
