//! A cluster's Ed25519 identity: its key file, its signatures, its TLS.
