//! The kinds of `transship.dev/v1alpha1`.
