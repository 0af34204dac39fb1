//! CRIU image formats and its page-server dialect.
