//! ravelin-agent.
