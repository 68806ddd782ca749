//! The `containerd-shim-ravelin-v2` binary.

fn main() {}
