//! What containerd runs the binary for.

mod args;
mod bootstrap;
mod delete;
mod info;
mod serve;
mod start;

pub use args::{Args, ArgsError};

/// What only fuzz targets reach.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use super::bootstrap::parse as parse_bootstrap;
}

use std::io::{self, Write};
use std::path::PathBuf;

use crate::config::ConfigError;
use crate::rootfs::confined::{self, ConfineError};
use crate::spec::SpecError;

/// Why the program ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The command line.
    #[error("the command line is wrong")]
    Args(#[from] ArgsError),
    /// An action nobody knows.
    #[error("unknown action {0:?}; the actions are start and delete")]
    UnknownAction(String),
    /// A flag that is needed.
    #[error("the flag -{0} is missing or is no identifier")]
    BadFlag(&'static str),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The bundle's spec.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A container whose sandbox is not there.
    #[error("the sandbox {sandbox_id} has no running shim: the container {id} cannot join it")]
    NoSandbox {
        /// The sandbox.
        sandbox_id: String,
        /// The container.
        id: String,
    },
    /// The daemon does not serve.
    #[error("the shim's daemon did not start: {0}")]
    Daemon(String),
    /// The socket could not be had.
    #[error("cannot listen on {path}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another shim serves this sandbox.
    #[error("a shim for the sandbox {0} is already running")]
    Running(String),
    /// A program that runs only confined.
    #[error("the program could not be confined")]
    Confine(#[from] ConfineError),
    /// Something else the system refused.
    #[error("cannot {what}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The ttrpc server.
    #[error("cannot serve containerd")]
    Serve(#[source] ttrpc::Error),
    /// A reply could not be encoded.
    #[error("cannot encode the reply to containerd")]
    Encode(#[source] protobuf::Error),
}

impl CliError {
    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

const HELP: &str = "\
Runs each Kubernetes pod in a KVM virtual machine of its own. Started by containerd, for the runtime io.containerd.ravelin.v2:

  containerd-shim-ravelin-v2 -namespace NAMESPACE -id ID -address SOCKET [-debug] start
  containerd-shim-ravelin-v2 -namespace NAMESPACE -id ID -address SOCKET -bundle DIRECTORY delete
  containerd-shim-ravelin-v2 -info     what the runtime can do, for containerd
  containerd-shim-ravelin-v2 -v        the version
";

/// Does what the arguments say.
///
/// # Errors
/// One sentence with its causes, for the standard error output, which containerd shows to the user.
pub fn run(arguments: &[String]) -> Result<(), CliError> {
    if arguments.first().is_some_and(|first| first == confined::ACTION) {
        // As they are: a path need not be text.
        return Ok(confined::run(std::env::args_os().skip(2)).map(|never| match never {})?);
    }
    let args = Args::parse(arguments)?;
    if args.help {
        return print(HELP.as_bytes());
    }
    if args.version {
        let name = std::env::args().next().unwrap_or_default();
        return print(format!("{name}:\n  Version: {}\n", env!("CARGO_PKG_VERSION")).as_bytes());
    }
    if args.info {
        return print(&info::reply()?);
    }
    match args.action.as_str() {
        "start" => start::run(&args),
        "delete" => delete::run(&args),
        "" => serve::run(&args),
        other => Err(CliError::UnknownAction(other.to_owned())),
    }
}

fn print(bytes: &[u8]) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(CliError::system("write to the standard output"))
}

/// `-namespace` and `-id`, checked.
fn check(args: &Args) -> Result<(), CliError> {
    for (flag, value) in [("namespace", &args.namespace), ("id", &args.id)] {
        if !crate::state::is_valid_id(value) {
            return Err(CliError::BadFlag(flag));
        }
    }
    Ok(())
}
