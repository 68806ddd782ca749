//! Generates the agent protocol's Rust code from `proto/agent.proto` (needs `protoc`).

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure().bytes(".").compile_protos(&["proto/agent.proto"], &["proto"])
}
