//! An address that is lent: to a pod, and when that moves on to the next one. Its home asks about the pod, then
//! the node, then gives it back; anything may happen between these.

use super::search::{self, Broken, Space, Steps};
use crate::rules::{Rule, holds};
use crate::{SandboxSeen, UserSeen, may_give_back};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Address {
    None,
    Lent,
    /// The lent one, but nothing passes: the pod runs elsewhere.
    Closed,
    Another,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Node {
    Up,
    /// Nobody hears of it: off, or only cut off.
    Silent,
    /// Off, says an administrator.
    Removed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Pod {
    object: bool,
    deleting: bool,
    /// What its status says.
    says: Address,
    /// What its sandbox has.
    sandbox: Address,
    node: Node,
}

/// How far the home's question is, about the pod to which the lease said that the address is lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Question {
    Begun { about: usize },
    PodSeen { about: usize, user: UserSeen },
    Over { about: usize },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    /// `None`: it was given back.
    lent_to: Option<usize>,
    pods: [Pod; 2],
    question: Option<Question>,
    moved_on: bool,
    reboots: u8,
    forced: u8,
    cuts: u8,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    what: &'static str,
    sure: bool,
}

/// It has just been lent: the pod's status is still to come. The other one is not there yet.
fn start(faults: u8) -> World {
    let pod = Pod {
        object: true,
        deleting: false,
        says: Address::None,
        sandbox: Address::Lent,
        node: Node::Up,
    };
    let later = Pod { object: false, sandbox: Address::None, ..pod };
    World {
        lent_to: Some(0),
        pods: [pod, later],
        question: None,
        moved_on: false,
        reboots: faults,
        forced: faults,
        cuts: faults,
    }
}

impl World {
    fn uses(pod: &Pod) -> bool {
        pod.sandbox == Address::Lent && pod.node != Node::Removed
    }

    fn pod_steps(&self, at: usize, push: &mut impl FnMut(&'static str, bool, World)) {
        let pod = self.pods[at];
        let mut change = |what, sure, change: &dyn Fn(&mut Pod)| {
            let mut next = self.clone();
            change(&mut next.pods[at]);
            if next != *self {
                push(what, sure, next);
            }
        };
        match pod.node {
            Node::Silent => {
                change("an administrator removes its node", false, &|pod| {
                    pod.node = Node::Removed;
                });
                return;
            }
            Node::Removed => {
                change("its object is collected", true, &|pod| pod.object = false);
                return;
            }
            Node::Up => {}
        }
        let alive = pod.object && !pod.deleting;
        if alive && pod.sandbox == Address::None {
            change("kubelet makes a sandbox", true, &|pod| pod.sandbox = Address::Another);
        }
        if !alive {
            change("kubelet removes its sandbox", true, &|pod| pod.sandbox = Address::None);
        }
        if pod.object && pod.sandbox != Address::None {
            change("its status says its address", true, &|pod| {
                pod.says = match pod.sandbox {
                    Address::Closed => Address::Lent,
                    other => other,
                };
            });
        }
        if pod.deleting && pod.sandbox == Address::None {
            change("its object goes", true, &|pod| pod.object = false);
        }
        if pod.object {
            change("somebody deletes it", false, &|pod| pod.deleting = true);
        }
    }

    fn faults(&self, at: usize, push: &mut impl FnMut(&'static str, bool, World)) {
        let pod = self.pods[at];
        if pod.node != Node::Up {
            return;
        }
        let mut fault = |what, change: &dyn Fn(&mut World)| {
            let mut next = self.clone();
            change(&mut next);
            push(what, false, next);
        };
        if self.reboots > 0 && pod.sandbox != Address::None {
            fault("its node reboots", &|next| {
                next.reboots -= 1;
                next.pods[at].sandbox = Address::None;
            });
        }
        if self.forced > 0 && pod.object {
            fault("it is deleted by force", &|next| {
                next.forced -= 1;
                next.pods[at].object = false;
            });
        }
        if self.cuts > 0 && (pod.object || pod.sandbox != Address::None) {
            fault("its node is not heard of any more", &|next| {
                next.cuts -= 1;
                next.pods[at].node = Node::Silent;
            });
        }
    }

    /// The address has a new owner before the sandbox of the former one goes.
    fn moves_on(&self) -> Option<World> {
        let first = self.pods[0];
        let may = !self.moved_on && first.object && World::uses(&first) && first.node == Node::Up;
        (may && self.lent_to.is_some()).then(|| {
            let mut next = self.clone();
            next.moved_on = true;
            next.lent_to = Some(1);
            next.pods[1].object = true;
            next.pods[1].sandbox = Address::Lent;
            next.pods[0].deleting = true;
            next.pods[0].sandbox = Address::Closed;
            next
        })
    }

    fn saw(&self, pod: &Pod) -> UserSeen {
        match (pod.object, pod.says) {
            (false, _) => UserSeen::Gone,
            (true, Address::None) => UserSeen::Silent,
            (true, Address::Lent | Address::Closed) => UserSeen::Uses,
            (true, Address::Another) => UserSeen::SaysOthers,
        }
    }

    fn home(&self, push: &mut impl FnMut(&'static str, bool, World)) {
        let mut then = |what, question| push(what, true, World { question, ..self.clone() });
        let over = |about, is_over: bool| is_over.then_some(Question::Over { about });
        match self.question {
            None => {
                if let Some(about) = self.lent_to {
                    then("its home begins to ask", Some(Question::Begun { about }));
                }
            }
            Some(Question::Begun { about }) => {
                let user = self.saw(&self.pods[about]);
                let next = match user {
                    UserSeen::Gone => Some(Question::PodSeen { about, user }),
                    _ => over(about, may_give_back(user, SandboxSeen::Unknown)),
                };
                then("its home reads the pod", next);
            }
            Some(Question::PodSeen { about, user }) => {
                let pod = &self.pods[about];
                let sandbox = match (pod.node, pod.sandbox) {
                    (Node::Removed, _) | (Node::Up, Address::None) => SandboxSeen::Free,
                    (Node::Up, _) => SandboxSeen::There,
                    (Node::Silent, _) => SandboxSeen::Unknown,
                };
                let next = over(about, may_give_back(user, sandbox));
                then("its home asks the node", next);
            }
            Some(Question::Over { about }) => {
                let mut next = World { question: None, ..self.clone() };
                if self.lent_to == Some(about) || !holds(Rule::OnlyTheAskedIsGivenBack) {
                    next.lent_to = None;
                }
                push("its home gives it back", true, next);
            }
        }
    }
}

impl Space for World {
    type Action = Step;

    fn successors(&self, out: &mut Steps<Self>) {
        let mut push = |what, sure, next| out.push((Step { what, sure }, Ok(next)));
        for at in 0..self.pods.len() {
            self.pod_steps(at, &mut push);
            self.faults(at, &mut push);
        }
        if let Some(next) = self.moves_on() {
            push("the pod moves on", false, next);
        }
        self.home(&mut push);
    }

    fn invariant(&self) -> Result<(), Broken> {
        if self.lent_to.is_none() && self.pods.iter().any(World::uses) {
            return Err("an address is given back though it is used");
        }
        Ok(())
    }

    /// It was given back, or somebody uses it, or may use it for all that is known.
    fn is_end(&self) -> bool {
        let keeps = |pod: &Pod| World::uses(pod) || pod.node == Node::Silent;
        self.lent_to.is_none_or(|at| keeps(&self.pods[at]))
    }

    fn is_sure(step: Step) -> bool {
        step.sure
    }

    fn tell(&self, step: Step) -> String {
        step.what.to_owned()
    }

    fn show(&self) -> String {
        format!("{self:?}")
    }
}

#[test]
fn a_lent_address_is_kept_while_it_is_used_and_no_longer() {
    search::passes("a lent address", &start(2));
}

macro_rules! each_rule_of_leases_matters {
    ($($name:ident: $rule:ident;)*) => {
        $(
            #[test]
            fn $name() {
                search::fails(Rule::$rule, [start(1)]);
            }
        )*

        /// The rules that are broken here.
        pub(super) const BROKEN: &[Rule] = &[$(Rule::$rule),*];
    };
}

each_rule_of_leases_matters! {
    the_address_of_a_sandbox_that_outlives_its_pod: GoneNeedsItsSandboxGone;
    the_address_of_a_pod_that_has_said_none_yet: SilenceKeepsTheAddress;
    the_address_that_a_pod_has_left_in_a_reboot: LeavingGivesBack;
    the_address_of_a_pod_that_has_moved_on_since_it_was_asked_about: OnlyTheAskedIsGivenBack;
}
