//! What a guest sends on the connection to its agent, byte for byte: HTTP/2, gRPC and the messages in it.
#![no_main]

use std::future::Future;
use std::io;
use std::sync::Mutex;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use libfuzzer_sys::fuzz_target;
use ravelin_fuzz::Input;
use ravelin_proto::MAX_MESSAGE_BYTES;
use ravelin_proto::agent::agent_client::AgentClient;
use ravelin_proto::agent::{ContainerRequest, Empty, ProcessRequest};
use ravelin_shim::error::bounded;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tonic::transport::{Endpoint, Uri};

/// Real time: a call that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(10);

fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let guest = tokio::spawn(guest(theirs, answer(bytes)));
        let ours = Mutex::new(Some(ours));
        let connector = tower::service_fn(move |_: Uri| {
            let stream = ours.lock().unwrap().take();
            async move { stream.map(TokioIo::new).ok_or_else(|| io::Error::other("one connection only")) }
        });
        // As the shim connects to an agent.
        let channel = Endpoint::from_static("http://agent").connect_with_connector_lazy(connector);
        let mut client = AgentClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        match bytes.first().copied().unwrap_or_default() % 3 {
            0 => call(client.stats(ContainerRequest { container_id: "c".to_owned() })).await,
            1 => call(client.wait(ProcessRequest::default())).await,
            _ => {
                call(async {
                    let mut events = client.events(Empty {}).await?.into_inner();
                    while events.message().await?.is_some() {}
                    Ok(())
                })
                .await;
            }
        }
        guest.abort();
    });
});

async fn call<T>(call: impl Future<Output = Result<T, tonic::Status>>) {
    let ended = tokio::time::timeout(PATIENCE, call).await.expect("a call ends with its connection");
    if let Err(status) = ended {
        assert!(bounded(status.message(), 1024).len() <= 1027);
    }
}

/// Sends the answer and hangs up when the other side has had the time to ask.
async fn guest(mut stream: DuplexStream, answer: Vec<u8>) {
    let _ = stream.read(&mut [0; 4096]).await;
    let _ = stream.write_all(&answer).await;
    let _ = stream.flush().await;
    tokio::task::yield_now().await;
    drop(stream.shutdown().await);
    let mut rest = [0; 4096];
    while let Ok(1..) = stream.read(&mut rest).await {}
}

/// The bytes as they are, or as what is in frames that look like those of an answer.
fn answer(bytes: &[u8]) -> Vec<u8> {
    let mut input = Input::new(bytes);
    input.u8();
    if input.below(2) == 0 {
        return input.rest().to_vec();
    }
    let mut answer = frame(4, 0, 0, &[]);
    // :status 200, content-type application/grpc.
    let mut headers = vec![0x88];
    header(&mut headers, b"content-type", b"application/grpc");
    while input.below(4) == 3 {
        let (name, value) = (usize::from(input.u8() % 32), usize::from(input.u8() % 64));
        let (name, value) = (input.bytes(name), input.bytes(value));
        header(&mut headers, name, value);
    }
    answer.extend(frame(1, 4, 1, &headers));
    while input.below(2) == 1 {
        let (compressed, length) = (input.u8() % 2, input.u8());
        let told = if input.below(8) == 7 { input.u32() } else { length.into() };
        let mut message = vec![compressed];
        message.extend(told.to_be_bytes());
        message.extend(input.bytes(length.into()));
        answer.extend(frame(0, 0, 1, &message));
    }
    let mut trailers = Vec::new();
    let code = input.u8() % 20;
    header(&mut trailers, b"grpc-status", code.to_string().as_bytes());
    let length = usize::from(input.u8() % 100);
    header(&mut trailers, b"grpc-message", input.bytes(length));
    answer.extend(frame(1, 5, 1, &trailers));
    answer.extend(input.rest());
    answer
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A header as HPACK's "literal without indexing", of at most 126 bytes each.
fn header(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    block.push(0);
    for text in [name, value] {
        block.push(u8::try_from(text.len()).unwrap());
        block.extend(text);
    }
}
