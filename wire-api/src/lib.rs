//! wire-api
