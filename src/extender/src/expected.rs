//! Pods that Migrations are to bring: from the choice of the target node on, a copy of the source pod
//! counts there, so that its room is not given away.
//!
//! The pod that is made for the Migration takes its place once its own scheduler asks about it, or it is
//! bound: from then on it counts as any other. Where that one ends and another has to be made, the copy
//! counts again.

use std::collections::{HashMap, HashSet};

use transship_core::placement::{Container, kubernetes};

use crate::cluster::Cluster;

/// All of them.
#[derive(Debug, Default)]
pub struct Expected {
    /// What is under way, by UID of the Migration.
    transfers: HashMap<String, Transfer>,
    /// UIDs of the pods that were made and count themselves, by that of their Migration.
    made: HashMap<String, String>,
}

#[derive(Debug)]
struct Transfer {
    /// UID of the source pod.
    source: String,
    node: String,
    /// Known once the source pod has been seen, and kept: it may be gone long before the other is made.
    copy: Option<Container>,
}

impl Expected {
    /// A Migration is to bring the pod with the UID `source` to a node.
    pub fn expect(&mut self, migration: &str, source: &str, node: &str, cluster: &mut Cluster) {
        let copy = self.transfers.remove(migration).and_then(|transfer| transfer.copy);
        let transfer = Transfer { source: source.to_owned(), node: node.to_owned(), copy };
        self.transfers.insert(migration.to_owned(), transfer);
        self.settle(migration, cluster);
    }

    /// A Migration brings nothing any more.
    pub fn give_up(&mut self, migration: &str, cluster: &mut Cluster) {
        self.transfers.remove(migration);
        self.made.remove(migration);
        self.settle(migration, cluster);
    }

    /// Migrations that are not among `uids` are gone.
    pub fn retain(&mut self, uids: &HashSet<String>, cluster: &mut Cluster) {
        let gone = self.transfers.keys().filter(|uid| !uids.contains(*uid));
        let gone: Vec<String> = gone.cloned().collect();
        gone.iter().for_each(|migration| self.give_up(migration, cluster));
    }

    /// A pod is on a node, or its scheduler asks about it. `made_for`: UID of the Migration that it was
    /// made for, if there is one.
    pub fn meet(&mut self, pod: &str, made_for: Option<&str>, cluster: &mut Cluster) {
        if let Some(migration) = made_for {
            self.made.insert(migration.to_owned(), pod.to_owned());
            self.settle(migration, cluster);
        }
        let awaits = |transfer: &Transfer| transfer.copy.is_none() && transfer.source == pod;
        let of_it = self.transfers.iter().filter(|(_, transfer)| awaits(transfer));
        let of_it: Vec<String> = of_it.map(|(migration, _)| migration.clone()).collect();
        of_it.iter().for_each(|migration| self.settle(migration, cluster));
    }

    /// A pod has ended, or is gone.
    pub fn lose(&mut self, pod: &str, made_for: Option<&str>, cluster: &mut Cluster) {
        let is_it = |migration: &&str| self.made.get(*migration).is_some_and(|made| made == pod);
        if let Some(migration) = made_for.filter(is_it) {
            self.made.remove(migration);
            self.settle(migration, cluster);
        }
    }

    /// Pods that are not among `uids` are gone, and the cluster has dropped every copy.
    pub fn retain_pods(&mut self, uids: &HashSet<String>, cluster: &mut Cluster) {
        // One whose node was chosen just now may not be in the list yet.
        self.made.retain(|_, pod| uids.contains(pod) || cluster.node_of(pod).is_some());
        let all: Vec<String> = self.transfers.keys().cloned().collect();
        all.iter().for_each(|migration| self.settle(migration, cluster));
    }

    /// Has the copy in the cluster exactly while it is to count.
    fn settle(&mut self, migration: &str, cluster: &mut Cluster) {
        // No UID and no name of a pod begins with a slash.
        let id = format!("/{migration}");
        let made = self.made.get(migration);
        let copy = self.transfers.get_mut(migration).and_then(|transfer| {
            if transfer.copy.is_none() {
                let source = cluster.pod(&transfer.source).filter(|pod| !pod.ended);
                transfer.copy = source.map(|pod| kubernetes::moved(pod, id.clone()));
            }
            // One that is elsewhere is left behind: the Migration goes back.
            let there = |pod: &String| cluster.node_of(pod).is_none_or(|at| at == transfer.node);
            let copy = transfer.copy.clone().filter(|_| !made.is_some_and(there))?;
            Some((transfer.node.as_str(), copy))
        });
        match copy {
            Some((node, copy)) => cluster.bind(node, copy),
            None => cluster.remove(&id),
        }
    }
}
