use std::fs::File;
use std::io;
use std::path::Path;

use rtnetlink::Handle;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

use super::NetworkError;

/// Runs `work` with a netlink handle in the network namespace at `path`, in a thread of its own that ends with it.
pub(super) async fn within<T, Work, Future>(path: &Path, work: Work) -> Result<T, NetworkError>
where
    T: Send + 'static,
    Work: FnOnce(Handle) -> Future + Send + 'static,
    Future: std::future::Future<Output = Result<T, NetworkError>>,
{
    let namespace =
        File::open(path).map_err(|source| NetworkError::Gone { path: path.to_owned(), source })?;
    let path = path.to_owned();
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || {
            let entered = enter(&namespace).map_err(|source| NetworkError::NotANamespace { path, source });
            drop(namespace);
            let _ = sender.send(entered.and_then(|()| run(work)));
        })
        .map_err(NetworkError::Thread)?;
    receiver.await.map_err(|_| NetworkError::Thread(io::Error::other("the thread ended early")))?
}

/// Moves the calling thread into a network namespace for good.
pub(super) fn enter(namespace: &File) -> io::Result<()> {
    use std::os::fd::AsFd;
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

fn run<T, Work, Future>(work: Work) -> Result<T, NetworkError>
where
    Work: FnOnce(Handle) -> Future,
    Future: std::future::Future<Output = Result<T, NetworkError>>,
{
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(NetworkError::Thread)?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Thread)?;
        tokio::spawn(connection);
        work(handle).await
    })
}
