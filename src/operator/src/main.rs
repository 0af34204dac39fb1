//! The operator of Transship.
mod leader;
mod pki;
mod server;
mod webhooks;

fn main() {}
