//! ravelin-tests.
