//! The controller part: store and TLS around controller-core.
