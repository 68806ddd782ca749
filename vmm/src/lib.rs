//! ravelin-vmm.
