//! The namespaces of a pod that has a user namespace of its own.

use std::fs::{self, File};
use std::io::{self, Read, Write};

use rustix::mount::mount_bind;
use rustix::process::{Pid, WaitOptions, getpid, waitpid};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::namespaces::{Ids, Namespaces, OTHERS, USER};
use crate::paths;

/// Leaves the guest's user, network, IPC and UTS namespace for new ones, which stay for others under [`paths::NAMESPACES`], and
/// becomes the user namespace's root. Must be called by a process with one thread.
///
/// # Errors
///
/// When the kernel refuses.
pub(super) fn enter_new(ids: &Ids) -> io::Result<()> {
    let (mut is_there, there) = io::pipe()?;
    let (answer, mut mapped) = io::pipe()?;
    let outsider = getpid();
    // Who is in the namespace may neither map the guest's ids into it nor mount in the guest. A copy of this process does.
    // SAFETY: this process has one thread, so the child may go on as an ordinary process.
    let helper = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            drop((there, answer));
            let done = is_there.read_exact(&mut [0]).and_then(|()| keep(outsider, ids));
            // A number is all that has to be told.
            let error = done.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
            let _ = mapped.write_all(&error.to_ne_bytes());
            std::process::exit(0)
        }
        pid => Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?,
    };
    drop((is_there, mapped));
    let done = enter(there, answer);
    let _ = waitpid(Some(helper), WaitOptions::empty());
    done
}

fn enter(mut there: io::PipeWriter, mut answer: io::PipeReader) -> io::Result<()> {
    let flags = UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // SAFETY: none of the flags parts descriptors.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER | flags) }?;
    there.write_all(&[0])?;
    let mut error = [0; 4];
    answer.read_exact(&mut error)?;
    match i32::from_ne_bytes(error) {
        0 => {}
        error => return Err(io::Error::from_raw_os_error(error)),
    }
    // SAFETY: plain numbers; this process has one thread.
    if unsafe { libc::setgroups(0, std::ptr::null()) | libc::setresgid(0, 0, 0) | libc::setresuid(0, 0, 0) }
        != 0
    {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Maps the ids of the namespace that a process is in, and keeps its namespaces.
fn keep(of: Pid, ids: &Ids) -> io::Result<()> {
    let process = format!("/proc/{}", of.as_raw_nonzero());
    fs::write(format!("{process}/uid_map"), ids.users.line())?;
    fs::write(format!("{process}/gid_map"), ids.groups.line())?;
    fs::create_dir_all(paths::NAMESPACES)?;
    for name in OTHERS.map(|(name, _)| name).into_iter().chain([USER]) {
        let place = Namespaces::path(name);
        File::create(&place)?;
        mount_bind(format!("{process}/ns/{name}"), &place)?;
    }
    Ok(())
}
