//! Standard streams: the host's raw connections on one side, a process's pipes or terminal on the other.

mod pipes;
mod pump;
mod registry;

pub use pipes::{Endpoints, Ends, prepare};
pub use pump::{Finish, Pumps};
pub use registry::{BoxStream, Registry, Stream};
