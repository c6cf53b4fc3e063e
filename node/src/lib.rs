//! The node part: keeps this host's kernel state as node-core wants it.
