//! plugin-loader
