//! ravelin-shim.
