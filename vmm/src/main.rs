//! `ravelin-vmm`: jails itself, then runs one machine for the shim that started it.

fn main() {}
