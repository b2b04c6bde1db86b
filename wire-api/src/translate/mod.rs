//! One dialect into another.
