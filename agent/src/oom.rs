//! Watches containers' cgroups for the kernel's OOM killer.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use ravelin_proto::agent as api;
use rustix::fs::inotify;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::broadcast;

use crate::container::cgroup::Cgroup;
use crate::sync::{blocking, lock};

/// The watch over all containers. Clones share it.
#[derive(Debug, Clone)]
pub struct OomWatch {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    inotify: AsyncFd<OwnedFd>,
    watched: Mutex<HashMap<String, Watched>>,
    events: broadcast::Sender<api::Event>,
}

#[derive(Debug)]
struct Watched {
    watch: i32,
    /// Kills that have been told.
    told: u64,
}

impl OomWatch {
    /// Starts watching; tells `events` of what it sees.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the notification descriptor.
    pub fn start(events: broadcast::Sender<api::Event>) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        // SAFETY: the descriptor is owned, and neither replaced nor closed while it is registered.
        let inotify = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        let shared = Arc::new(Shared { inotify, watched: Mutex::default(), events });
        tokio::spawn(run(Arc::clone(&shared)));
        Ok(Self { shared })
    }

    /// Watches a container's cgroup from now on.
    pub fn add(&self, id: &str) {
        let file = Cgroup::of(id).path().join("memory.events");
        match inotify::add_watch(self.shared.inotify.get_ref(), &file, inotify::WatchFlags::MODIFY) {
            Ok(watch) => {
                let watched = Watched { watch, told: 0 };
                self.shared.lock().insert(id.to_owned(), watched);
            }
            Err(error) => crate::log!("cannot watch {}: {error}", file.display()),
        }
    }

    /// Ends a watch.
    pub fn remove(&self, id: &str) {
        if let Some(watched) = self.shared.lock().remove(id) {
            let _ = inotify::remove_watch(self.shared.inotify.get_ref(), watched.watch);
        }
    }

    /// Looks at a container now, tells of kills not told yet, and says whether there ever was one. The kernel
    /// counts a kill before it sends the signal, so this is right for a process that was just reaped.
    #[must_use]
    pub fn check(&self, id: &str) -> bool {
        self.shared.check(id)
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Watched>> {
        lock(&self.watched)
    }

    fn check(&self, id: &str) -> bool {
        let kills = Cgroup::of(id).oom_kills();
        let fresh = self.lock().get_mut(id).is_some_and(|watched| {
            let fresh = kills > watched.told;
            watched.told = watched.told.max(kills);
            fresh
        });
        if fresh {
            let oom = api::OomEvent { container_id: id.to_owned() };
            // Nobody may be listening.
            let _ = self.events.send(api::Event { kind: Some(api::event::Kind::Oom(oom)) });
        }
        kills > 0
    }
}

async fn run(shared: Arc<Shared>) {
    loop {
        let mut touched = Vec::new();
        let read = shared.inotify.async_io(Interest::READABLE, |fd| {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(fd, &mut buffer);
            touched.push(reader.next()?.wd());
            while !reader.is_buffer_empty() {
                touched.push(reader.next()?.wd());
            }
            Ok(())
        });
        if let Err(error) = read.await {
            crate::log!("cannot watch for OOM kills any more: {error}");
            return;
        }
        let ids: Vec<String> = {
            let watched = shared.lock();
            watched
                .iter()
                .filter(|(_, entry)| touched.contains(&entry.watch))
                .map(|(id, _)| id.clone())
                .collect()
        };
        let looker = Arc::clone(&shared);
        let looked = blocking(move || {
            for id in ids {
                looker.check(&id);
            }
            Ok(())
        });
        if let Err(error) = looked.await {
            crate::log!("cannot look for OOM kills: {error}");
        }
    }
}
