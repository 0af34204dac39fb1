//! Records, journal and paths on the host.
