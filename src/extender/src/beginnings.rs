//! On which nodes words of pods begin in some way: their names, UIDs and ids of containers, in order,
//! so that those that begin alike stand together. Most affinities to pods say how a name begins, and
//! then no node has to be looked at that has no such pod.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::iter::once;

use transship_core::placement::Container;

/// The first bytes of a word, zeros behind a shorter one. Those that have them in common are not told
/// apart: whoever asks looks at a few nodes more.
type Head = [u8; 32];

/// How often each head is on a node, by head and the node's slot.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Beginnings(BTreeMap<(Head, usize), usize>);

impl Beginnings {
    /// The pod is on the node in this slot.
    pub fn add(&mut self, slot: usize, pod: &Container) {
        for head in heads(pod) {
            *self.0.entry((head, slot)).or_default() += 1;
        }
    }

    /// The pod, as it was added, is not there any more.
    pub fn remove(&mut self, slot: usize, pod: &Container) {
        for head in heads(pod) {
            if let Entry::Occupied(mut count) = self.0.entry((head, slot)) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
    }

    /// Slots of the nodes on which a word may begin with one of these, some of them several times.
    pub fn slots(&self, beginnings: &[&[u8]]) -> impl Iterator<Item = usize> {
        beginnings.iter().flat_map(move |beginning| {
            let range = (head(beginning, 0), 0)..=(head(beginning, u8::MAX), usize::MAX);
            self.0.range(range).map(|((_, slot), _)| *slot)
        })
    }
}

/// To an affinity a word with line breaks is several; as a dependency it is one.
fn heads(pod: &Container) -> impl Iterator<Item = Head> {
    let words = pod.words().flat_map(|word| once(word).chain(word.split('\n').skip(1)));
    words.map(|word| head(word.as_bytes(), 0))
}

fn head(word: &[u8], rest: u8) -> Head {
    let mut head = [rest; size_of::<Head>()];
    let len = word.len().min(head.len());
    head[..len].copy_from_slice(&word[..len]);
    head
}
