//! The echo architecture as a loadable plugin.
