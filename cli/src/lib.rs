//! The one binary, tombolo: runs each part and is the operator's tool.
