//! Running a program to its end, under a deadline.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::wait::{PATIENCE, until};

/// A program about to be run.
#[derive(Debug)]
pub struct Run {
    program: String,
    args: Vec<OsString>,
    envs: Vec<(String, String)>,
    input: Vec<u8>,
    deadline: Duration,
    line: String,
}

/// What a program left behind.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The command line, for messages.
    pub line: String,
    /// Exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// Standard output, verbatim.
    pub stdout: Vec<u8>,
    /// Standard error as text.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Run {
    /// A program looked up in `PATH`.
    pub fn new(program: &str) -> Self {
        Self {
            program: program.to_owned(),
            args: Vec::new(),
            envs: Vec::new(),
            input: Vec::new(),
            deadline: PATIENCE,
            line: program.to_owned(),
        }
    }

    /// `crictl`, with patience for slow hosts.
    pub fn crictl() -> Self {
        Self::new("crictl").args(["-t", "480s"])
    }

    /// `ctr` in containerd's Kubernetes namespace.
    pub fn ctr() -> Self {
        Self::new("ctr").args(["-n", "k8s.io"])
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.line.push(' ');
        self.line.push_str(&arg.as_ref().to_string_lossy());
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.envs.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Gives the program this standard input.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// Replaces the deadline of [`PATIENCE`].
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs it. Panics when it cannot be started or misses its deadline.
    #[track_caller]
    pub fn run(self) -> Finished {
        loop {
            let done = self.run_once();
            // crictl gives up when a busy containerd does not greet it in time; then nothing has happened yet.
            if done.code == 0
                || !done.stderr.contains("validate service connection")
                || done.took > self.deadline
            {
                return done;
            }
        }
    }

    #[track_caller]
    fn run_once(&self) -> Finished {
        let started = Instant::now();
        let mut command = self.command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot run {}: {error}", self.line));
        let mut stdin = child.stdin.take().expect("stdin is a pipe");
        let input = self.input.clone();
        // Ends by itself: the pipe breaks when the program goes away.
        thread::spawn(move || stdin.write_all(&input));
        let stdout = drain(child.stdout.take().expect("stdout is a pipe"));
        let stderr = drain(child.stderr.take().expect("stderr is a pipe"));
        let Some(code) = until(self.deadline, || exit_code(&mut child)) else {
            // It may end on its own in this very moment.
            let _ = child.kill();
            let _ = child.wait();
            panic!("{} did not end within {} s", self.line, self.deadline.as_secs());
        };
        Finished {
            line: self.line.clone(),
            code,
            stdout: stdout.join().expect("the reader does not panic"),
            stderr: String::from_utf8_lossy(&stderr.join().expect("the reader does not panic")).into_owned(),
            took: started.elapsed(),
        }
    }

    /// Runs it and panics unless it succeeds. Its output, without the last line break.
    #[track_caller]
    pub fn ok(self) -> String {
        let done = self.run();
        assert!(done.code == 0, "{} failed with {}: {}{}", done.line, done.code, done.text(), done.stderr);
        done.text().trim_end_matches('\n').to_owned()
    }

    /// Runs it and panics unless it succeeds with JSON.
    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        let line = self.line.clone();
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{line}: {error} in {text}"))
    }

    /// The plain command.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).envs(self.envs.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The command line, for messages.
    pub(crate) fn line(&self) -> &str {
        &self.line
    }
}

impl Finished {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

pub(crate) fn exit_code(child: &mut Child) -> Option<i32> {
    use std::os::unix::process::ExitStatusExt;
    let status = child.try_wait().expect("an own child can be waited for")?;
    Some(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

fn drain(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // A read error is an end of the stream.
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}
