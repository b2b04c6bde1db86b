//! plugin-conformance
