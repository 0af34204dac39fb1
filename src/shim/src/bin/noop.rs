//! Succeeds. Takes the place of an init container's program in a target pod, where its work was done in the
//! source already. Linked statically, since it runs in any image.

fn main() {}
