//! Containers that must be on the node: those whose volumes or network are used, or that are linked
//! to; and volumes that are in use there and can be mounted nowhere else.

use super::{Compiled, Condition, Test};
use crate::placement::model::{Network, Request};

pub(super) fn compile(request: &Request) -> Compiled {
    let mut tests = Vec::new();
    let mut listing = Vec::new();
    let mut depend = |option: &str, on: &str, text: &str| {
        tests.push(Test::Container(on.to_owned()));
        listing.push(format!("--{option}={text}"));
    };
    for volume in &request.volumes_from {
        depend("volumes-from", before_colon(volume), volume);
    }
    for link in &request.links {
        depend("link", before_colon(link), link);
    }
    if let Network::Container(name) = &request.network {
        depend("net", name, &format!("container:{name}"));
    }
    for claim in &request.claims {
        tests.push(Test::Mounted(claim.clone()));
        listing.push(format!("--volumes-from={claim}"));
    }
    let reason =
        format!("Unable to find a node fulfilling all dependencies: {}", listing.join(" "));
    let conditions = tests.into_iter().map(|test| Condition::hard(test, reason.clone())).collect();
    Compiled { conditions, listing: Ok(listing) }
}

fn before_colon(text: &str) -> &str {
    text.split_once(':').map_or(text, |(before, _)| before)
}
