//! Containers that must be on the node: those whose volumes or network are used, or that are linked
//! to; and volumes that are in use there and can be mounted nowhere else.

use regex::Regex;

use super::{Compiled, Condition, Test};
use crate::placement::model::{Network, Request};

pub(super) fn compile(request: &Request) -> Compiled {
    let mut wanted = Vec::new();
    let mut listing = Vec::new();
    let mut depend = |option: &str, on: &str, text: &str| {
        // Escaped, it is only ever too long.
        let beginning = Regex::new(&format!("\n{}", regex::escape(on))).ok();
        wanted.push((on.to_owned(), beginning));
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
        listing.push(format!("--volumes-from={claim}"));
    }
    let reason =
        format!("Unable to find a node fulfilling all dependencies: {}", listing.join(" "));
    let containers = (!wanted.is_empty()).then_some(Test::Containers(wanted));
    let tests = containers.into_iter().chain(request.claims.iter().cloned().map(Test::Mounted));
    let conditions = tests.map(|test| Condition::hard(test, reason.clone())).collect();
    Compiled { conditions, listing: Ok(listing) }
}

fn before_colon(text: &str) -> &str {
    text.split_once(':').map_or(text, |(before, _)| before)
}
