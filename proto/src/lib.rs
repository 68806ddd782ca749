//! The protocol between the shim (client, on the host) and the agent (server, in the guest).
//!
//! `proto/agent.proto` says what each message means; this crate holds the generated code and the few
//! constants both sides must agree on.

/// Generated messages, client and server of `ravelin.agent.v1`.
#[allow(missing_docs, missing_debug_implementations, clippy::all, clippy::pedantic)]
pub mod agent {
    tonic::include_proto!("ravelin.agent.v1");
}

/// vsock port on which the agent serves gRPC.
pub const CONTROL_PORT: u32 = 1024;

/// vsock port on which the agent takes raw stdio streams.
///
/// The host connects, writes the 8-byte little-endian stream id it chose, and later names that id in
/// `CreateContainer`, `Exec` or `Dial`. After those 8 bytes the connection carries the stream's bytes alone.
pub const STREAM_PORT: u32 = 1025;

/// Version of the protocol; `SetupSandbox` fails if the two sides differ.
pub const PROTOCOL_VERSION: u32 = 7;

/// Largest gRPC message either side sends, and the agent accepts, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// Largest answer or event of the agent's that the shim accepts, in bytes: twice the longest last words. What is read of one
/// may take fifty times as much memory.
pub const MAX_REPLY_BYTES: usize = 128 << 10;
