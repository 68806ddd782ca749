//! Emulates one KVM microVM, the machine that a pod runs in, and the protocol that steers it.

pub mod control;
