//! ravelin-policy.
