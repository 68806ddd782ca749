//! Resource limits of a container in a user namespace. libcontainer sets them in it, where nobody may raise one.

use std::io;

use oci_spec::runtime::{PosixRlimit, PosixRlimitType};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the hard limits of the calling process to what `limits` ask for; its children have them from it. Nothing is lowered, which
/// could stop the process itself.
///
/// # Errors
///
/// When the kernel refuses.
pub(super) fn raise(limits: &[PosixRlimit]) -> io::Result<()> {
    for limit in limits {
        let resource = resource(limit.typ());
        let own = getrlimit(resource);
        let wanted = Some(limit.hard()).filter(|hard| *hard != u64::MAX);
        if own.maximum.is_some_and(|own| wanted.is_none_or(|wanted| wanted > own)) {
            setrlimit(resource, Rlimit { maximum: wanted, ..own })?;
        }
    }
    Ok(())
}

const fn resource(limit: PosixRlimitType) -> Resource {
    match limit {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::PosixRlimitBuilder;

    use super::*;

    #[test]
    fn nothing_is_lowered() {
        let own = getrlimit(Resource::Nofile);
        let limit = PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitNofile).soft(1_u64).hard(1_u64);
        raise(&[limit.build().unwrap()]).unwrap();
        assert_eq!(getrlimit(Resource::Nofile), own);
    }
}
