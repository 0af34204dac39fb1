//! Swarm's filters: each turns a request into conditions that a node meets or not.

/// A filter, by Swarm's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Filter {
    /// The node is healthy.
    Health,
    /// The ports that are asked for are free.
    Port,
    /// The node's label `containerslots` allows one more container.
    ContainerSlots,
    /// The containers that are linked to are on the node.
    Dependency,
    /// What is on the node matches.
    Affinity,
    /// The node's name or labels match.
    Constraint,
    /// The node is one of those listed.
    Whitelist,
}

impl Filter {
    /// All filters, in the order in which Swarm runs them.
    pub const ALL: [Self; 7] = [
        Self::Health,
        Self::Port,
        Self::ContainerSlots,
        Self::Dependency,
        Self::Affinity,
        Self::Constraint,
        Self::Whitelist,
    ];

    /// Swarm's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Health => "health",
            Self::Port => "port",
            Self::ContainerSlots => "containerslots",
            Self::Dependency => "dependency",
            Self::Affinity => "affinity",
            Self::Constraint => "constraint",
            Self::Whitelist => "whitelist",
        }
    }

    /// The filter of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|filter| filter.name() == name)
    }
}
