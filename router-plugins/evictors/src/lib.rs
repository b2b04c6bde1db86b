//! evictors
