//! Every decision, without input or output.
