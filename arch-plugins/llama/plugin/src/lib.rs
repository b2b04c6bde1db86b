//! The llama architecture as a loadable plugin.
