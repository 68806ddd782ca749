use std::io::{Read, Write};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::testing::fifo;
use super::*;

/// One output that is copied, the guest's end of it, and containerd's.
fn copied() -> (Io, UnixStream, pipe::Receiver) {
    let directory = tempfile::tempdir().unwrap();
    let path = fifo(directory.path(), "stdout");
    let reader = pipe::OpenOptions::new().open_receiver(&path).unwrap();
    let (host, guest) = UnixStream::pair().unwrap();
    let io = Io::default();
    io.copy_output(host, output("stdout", &path).unwrap());
    (io, guest, reader)
}

#[tokio::test]
async fn output_survives_a_reader_that_goes_and_comes_and_ends_with_the_process() {
    let directory = tempfile::tempdir().unwrap();
    let path = fifo(directory.path(), "stdout");
    let sender = output("stdout", &path).unwrap();
    let (host, mut guest) = UnixStream::pair().unwrap();
    let progress = Arc::new(Progress::default());
    let copying = tokio::spawn(pump::output(host, sender, Arc::clone(&progress)));
    let first = std::fs::File::open(&path).unwrap();
    guest.write_all(b"before ").await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop(first);
    guest.write_all(b"while away").await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    // While the output is open: a fifo without a writer would wait for one.
    let mut second = std::fs::File::open(&path).unwrap();
    let reading = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        second.read_to_string(&mut text).unwrap();
        text
    });
    drop(guest);
    copying.await.unwrap();
    assert_eq!(reading.await.unwrap(), "before while away");
    assert_eq!(progress.moved.load(Ordering::Relaxed), 17);
}

#[tokio::test]
async fn a_hundred_megabytes_pass_without_a_byte_lost() {
    const TOTAL: usize = 100 << 20;
    let directory = tempfile::tempdir().unwrap();
    let path = fifo(directory.path(), "stdout");
    let sender = output("stdout", &path).unwrap();
    let (host, mut guest) = UnixStream::pair().unwrap();
    tokio::spawn(pump::output(host, sender, Arc::default()));
    let reading = tokio::task::spawn_blocking(move || {
        let mut file = std::fs::File::open(&path).unwrap();
        let mut buffer = vec![0; 1 << 20];
        let (mut count, mut sum) = (0_usize, 0_u64);
        loop {
            let read = file.read(&mut buffer).unwrap();
            if read == 0 {
                return (count, sum);
            }
            for (at, byte) in buffer[..read].iter().enumerate() {
                sum = sum.wrapping_add(((count + at) as u64).wrapping_mul(u64::from(*byte)));
            }
            count += read;
        }
    });
    let block: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
    let mut expected = 0_u64;
    for number in 0..TOTAL / block.len() {
        for (at, byte) in block.iter().enumerate() {
            expected =
                expected.wrapping_add(((number * block.len() + at) as u64).wrapping_mul(u64::from(*byte)));
        }
        guest.write_all(&block).await.unwrap();
    }
    drop(guest);
    assert_eq!(reading.await.unwrap(), (TOTAL, expected));
}

#[tokio::test]
async fn input_ends_only_when_both_containerd_and_we_let_go() {
    let directory = tempfile::tempdir().unwrap();
    let path = fifo(directory.path(), "stdin");
    let (receiver, keeper) = input(&path).unwrap();
    let (host, mut guest) = UnixStream::pair().unwrap();
    let mut io = Io::default();
    io.keeper = Mutex::new(Some(keeper));
    tokio::spawn(pump::input(receiver, host, true));
    let write = |text: &str| {
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().write_all(text.as_bytes()).unwrap();
    };
    write("first ");
    // containerd went away and came back.
    tokio::time::sleep(Duration::from_millis(20)).await;
    write("second");
    io.close_stdin();
    let mut text = String::new();
    guest.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "first second");
}

#[tokio::test]
async fn a_fifo_that_is_none_is_an_error_that_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    for stdout in [file.to_str().unwrap(), "/nonexistent/fifo", "binary:///bin/logger"] {
        let paths = Paths { stdout: stdout.to_owned(), ..Paths::default() };
        let error = Fifos::open(paths).await.unwrap_err().to_string();
        assert!(error.contains(stdout), "{error}");
    }
    assert!(Fifos::open(Paths::default()).await.is_ok());
}

#[tokio::test]
async fn an_output_held_open_by_somebody_else_does_not_hold_up_the_end_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let path = fifo(directory.path(), "stdout");
    let (host, _guest) = UnixStream::pair().unwrap();
    let io = Io::default();
    io.copy_output(host, output("stdout", &path).unwrap());
    let started = std::time::Instant::now();
    tokio::time::timeout(STALL * 3, io.drain()).await.unwrap();
    assert!(started.elapsed() >= STALL);
}

#[tokio::test]
async fn an_output_has_settled_only_when_its_last_words_are_in_the_fifo() {
    let (io, mut guest, mut reader) = copied();
    let guest = tokio::spawn(async move {
        // The process's end is known by now.
        tokio::time::sleep(Duration::from_millis(100)).await;
        guest.write_all(b"last words").await.unwrap();
    });
    tokio::time::timeout(STALL, io.settle()).await.unwrap();
    let mut words = [0; 32];
    assert_eq!(reader.try_read(&mut words).unwrap(), 10);
    assert_eq!(reader.read(&mut words).await.unwrap(), 0, "containerd reads the end of the file");
    guest.await.unwrap();
}

/// containerd 1.6 closes its ends when it hears of the process's end: on a busy node it reads late what came before.
#[tokio::test]
async fn an_output_that_is_read_late_has_settled_when_it_was_read() {
    let (io, mut guest, mut reader) = copied();
    // More than the fifo holds.
    let guest = tokio::spawn(async move { guest.write_all(&[b'x'; 200_000]).await });
    let read = tokio::spawn(async move {
        tokio::time::sleep(STALL * 3).await;
        let mut words = Vec::new();
        reader.read_to_end(&mut words).await.map(|_| words.len())
    });
    io.settle().await;
    guest.await.unwrap().unwrap();
    // As when containerd's exit is told now: nothing is on its way any more.
    assert_eq!(*io.open.borrow(), 0);
    assert_eq!(read.await.unwrap().unwrap(), 200_000);
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_goes_on_for_ever_does_not_hold_up_a_processs_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = fifo(directory.path(), "stdout");
    let (host, _guest) = UnixStream::pair().unwrap();
    let io = Io::default();
    io.copy_output(host, output("stdout", &path).unwrap());
    let progress = Arc::clone(&io.progress);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(STALL / 2).await;
            progress.moved.fetch_add(1, Ordering::Relaxed);
        }
    });
    tokio::time::timeout(LAST_WORDS * 2, io.settle()).await.unwrap();
}

#[tokio::test]
async fn a_terminal_is_closed_when_it_is_quiet_but_not_under_a_slow_reader() {
    let directory = tempfile::tempdir().unwrap();
    let path = fifo(directory.path(), "stdout");
    let mut reader = pipe::OpenOptions::new().open_receiver(&path).unwrap();
    let (host, mut guest) = UnixStream::pair().unwrap();
    let io = Arc::new(terminal());
    io.copy_output(host, output("stdout", &path).unwrap());
    // More than the fifo holds.
    guest.write_all(&[7; 100_000]).await.unwrap();
    let closing = tokio::spawn({
        let io = Arc::clone(&io);
        async move { io.close_when_quiet().await }
    });
    tokio::time::sleep(QUIET_TERMINAL * TALKING_ROUNDS * 2).await;
    assert!(!closing.is_finished(), "containerd may come back for the rest");
    let mut all = Vec::new();
    tokio::time::timeout(STALL, reader.read_to_end(&mut all)).await.unwrap().unwrap();
    assert_eq!(all.len(), 100_000);
    closing.await.unwrap();
    drop(guest);
}

/// A background process that writes on when the shell has ended: the terminal ends with the shell.
#[tokio::test]
async fn a_terminal_on_which_somebody_talks_on_is_closed_soon_after_its_process() {
    let directory = tempfile::tempdir().unwrap();
    let path = fifo(directory.path(), "stdout");
    let mut reader = pipe::OpenOptions::new().open_receiver(&path).unwrap();
    let (host, mut guest) = UnixStream::pair().unwrap();
    let io = terminal();
    io.copy_output(host, output("stdout", &path).unwrap());
    let talking = tokio::spawn(async move {
        while guest.write_all(b"x\n").await.is_ok() {
            tokio::time::sleep(QUIET_TERMINAL / 10).await;
        }
    });
    let reading = tokio::spawn(async move { reader.read_to_end(&mut Vec::new()).await });
    let end = async {
        io.settle().await;
        io.close_when_quiet().await;
    };
    tokio::time::timeout(LAST_WORDS, end).await.expect("it ends though somebody talks");
    reading.await.unwrap().unwrap();
    talking.await.unwrap();
}

/// The outputs of a process whose guest says that it has ended and leaves them open.
#[tokio::test(start_paused = true)]
async fn pipes_are_closed_when_the_guest_is_silent_on_them_or_talks_on_for_too_long() {
    let directory = tempfile::tempdir().unwrap();
    for (name, talks, after) in [("silent", false, QUIET), ("talking", true, QUIET * TALKING_ROUNDS)] {
        let path = fifo(directory.path(), name);
        let mut reader = pipe::OpenOptions::new().open_receiver(&path).unwrap();
        let (host, mut guest) = UnixStream::pair().unwrap();
        let io = Io::default();
        io.copy_output(host, output("stdout", &path).unwrap());
        let guest = tokio::spawn(async move {
            while !talks || guest.write_all(b"x").await.is_ok() {
                tokio::time::sleep(QUIET / 3).await;
            }
        });
        let began = Instant::now();
        tokio::time::timeout(after * 2, io.close_when_quiet()).await.expect(name);
        assert_eq!(began.elapsed().as_secs(), after.as_secs(), "{name}");
        reader.read_to_end(&mut Vec::new()).await.expect("containerd reads the end");
        guest.abort();
    }
}

fn terminal() -> Io {
    let mut io = Io::default();
    io.terminal = true;
    io
}
