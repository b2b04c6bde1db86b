//! arch-echo
