//! What the shim may do on the node. It is root there, and gives up for good what neither it nor what it starts uses: rights
//! of root ([`capabilities`]), and to write where it has nothing to write ([`files`]). A fault in it, or a program that it
//! was made to run, has them neither.
//!
//! What containerd names, wherever it is, and programs that mount for themselves are left to [`unrestricted`] threads.

mod capabilities;
mod files;
mod unrestricted;

pub use capabilities::give_up;
pub use files::{Writable, restrict};
pub use unrestricted::unrestricted;
