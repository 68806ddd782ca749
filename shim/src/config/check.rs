//! What the values of the configuration must be.

use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};

use ravelin_policy::{MAX_CPU_MILLIS, MAX_MEMORY_MIB, MIN_CPU_MILLIS, MIN_MEMORY_MIB};

use super::{Config, Timeouts, real};
use crate::rootfs::confined::USER as LAYERS_USER;
use crate::state;

/// Seconds that something may take: up to a day.
const SECONDS: RangeInclusive<u64> = 1..=24 * 60 * 60;
/// GiB of a scratch disk. ext4 without its 64-bit feature numbers less than 16 TiB in blocks of 4 KiB, and a file of the
/// node's ext4, in which the disk lies, can be no longer.
const SCRATCH_GIB: RangeInclusive<u64> = 1..=16_383;
/// MiB for the machine's process: its program and its threads' stacks take some ten at least.
const VMM_OVERHEAD_MIB: RangeInclusive<u64> = 16..=16_384;
/// Machines that start at a time.
const STARTS: RangeInclusive<u64> = 0..=1024;

/// A value that cannot be used.
pub(super) struct Problem {
    /// The key with its section.
    pub key: &'static str,
    /// The value, as it would be written.
    pub value: String,
    /// What it must be.
    pub rule: String,
}

/// The first value that cannot be used in the configuration that `file` holds.
pub(super) fn check(config: &Config, file: &Path) -> Result<(), Problem> {
    paths(config)?;
    host_paths(config, file)?;
    user_ids(config)?;
    let cmdline = &config.guest.cmdline;
    if !cmdline.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return problem("guest.cmdline", format!("{cmdline:?}"), "printable ASCII");
    }
    let Timeouts { queue_seconds, boot_seconds, layer_seconds, call_seconds, sync_seconds } = config.timeouts;
    let sizing = &config.sizing;
    for (key, value, bounds) in [
        ("vmm.overhead_mib", config.vmm.overhead_mib.into(), VMM_OVERHEAD_MIB),
        ("vmm.starts", config.vmm.starts.into(), STARTS),
        ("storage.scratch_gib", config.storage.scratch_gib.into(), SCRATCH_GIB),
        ("sizing.overhead_mib", sizing.overhead_mib.into(), 0..=MAX_MEMORY_MIB),
        ("sizing.resize_headroom_mib", sizing.resize_headroom_mib.into(), 0..=MAX_MEMORY_MIB),
        ("sizing.default_cpu_millis", sizing.default_cpu_millis.into(), MIN_CPU_MILLIS..=MAX_CPU_MILLIS),
        ("sizing.default_memory_mib", sizing.default_memory_mib.into(), MIN_MEMORY_MIB..=MAX_MEMORY_MIB),
        ("timeouts.queue_seconds", queue_seconds, SECONDS),
        ("timeouts.boot_seconds", boot_seconds, SECONDS),
        ("timeouts.layer_seconds", layer_seconds, SECONDS),
        ("timeouts.call_seconds", call_seconds, SECONDS),
        ("timeouts.sync_seconds", sync_seconds, SECONDS),
    ] {
        if !bounds.contains(&value) {
            let rule = format!("between {} and {}", bounds.start(), bounds.end());
            return Err(Problem { key, value: value.to_string(), rule });
        }
    }
    Ok(())
}

fn paths(config: &Config) -> Result<(), Problem> {
    for (key, path) in [
        ("vmm.path", &config.vmm.path),
        ("fs.path", &config.fs.path),
        ("guest.kernel", &config.guest.kernel),
        ("guest.initramfs", &config.guest.initramfs),
        ("storage.directory", &config.storage.directory),
    ] {
        if !path.is_absolute() {
            return problem(key, format!("{path:?}"), "an absolute path");
        }
    }
    for (key, roots) in
        [("roots.kubelet", &config.roots.kubelet), ("roots.containerd", &config.roots.containerd)]
    {
        // Paths are judged by their text: a root that is written in another way than the paths below it has none.
        if let Some(root) = roots.iter().flatten().find(|root| !is_root(root)) {
            let rule = "absolute paths other than /, without `.`, `..`, `//` and a slash at the end";
            return problem(key, format!("{root:?}"), rule);
        }
    }
    Ok(())
}

/// `file` is the configuration's own.
fn host_paths(config: &Config, file: &Path) -> Result<(), Problem> {
    let key = "policy.host_paths";
    let roots = config.roots.known_beforehand();
    let ours = [
        Some(config.storage.directory.as_path()),
        Some(Path::new(state::ROOT)),
        file.parent().filter(|folder| folder.is_absolute()),
    ];
    // They hold what is other pods', or what pods are judged by.
    let private =
        roots.kubelet.iter().chain(&roots.containerd).map(Path::new).chain(ours.into_iter().flatten());
    let private: Vec<_> = private.map(real).collect();
    let all: Vec<_> =
        config.policy.host_paths.iter().map(|host| (host, real(Path::new(&host.path)))).collect();
    for (number, (host, path)) in all.iter().enumerate() {
        let wrong = |rule: &str| problem(key, format!("{:?}", host.path), rule);
        // A mount of it would have all that is mounted below.
        let near = |private: &&PathBuf| private.starts_with(path) || path.starts_with(private);
        if let Some(private) = private.iter().find(near) {
            let private = private.display();
            return wrong(&format!(
                "apart from {private}, which holds what is other pods' or what they are judged by"
            ));
        }
        let others = all.iter().enumerate().filter(|(other, _)| *other != number).map(|(_, other)| other);
        for (outer, outer_path) in others {
            if outer_path == path {
                return wrong(&format!("another directory than {}, which is listed too", outer.path));
            }
            // Who writes there could put a link in the place of what is listed below, and write to what is read-only there.
            if outer.writable && path.starts_with(outer_path) {
                return wrong(&format!("outside of {}, where pods may write (:rw)", outer.path));
            }
        }
    }
    Ok(())
}

fn is_root(root: &str) -> bool {
    let mut parts = Path::new(root).components();
    let rebuilt = Path::new(root).components().collect::<std::path::PathBuf>();
    parts.next() == Some(Component::RootDir)
        && parts.clone().next().is_some()
        && parts.all(|part| matches!(part, Component::Normal(_)))
        // `components` passes over what a path can do without.
        && rebuilt.as_os_str() == root
}

fn user_ids(config: &Config) -> Result<(), Problem> {
    let vmm = &config.vmm;
    if vmm.uid_base == 0 {
        return problem("vmm.uid_base", "0".to_owned(), "greater: a machine never runs as root");
    }
    if vmm.uid_count == 0 || vmm.uid_base.checked_add(vmm.uid_count).is_none() {
        let rule = format!("between 1 and {}: user ids have 32 bits", u32::MAX - vmm.uid_base);
        return problem("vmm.uid_count", vmm.uid_count.to_string(), &rule);
    }
    // A machine with that user could write to images of layers while they are made.
    if (vmm.uid_base..vmm.uid_base + vmm.uid_count).contains(&LAYERS_USER) {
        let rule =
            format!("such that user {LAYERS_USER}, as which layer images are made, is not a machine's");
        return problem("vmm.uid_base", vmm.uid_base.to_string(), &rule);
    }
    Ok(())
}

fn problem(key: &'static str, value: String, rule: &str) -> Result<(), Problem> {
    Err(Problem { key, value, rule: rule.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(text: &str) -> Option<String> {
        let path = Path::new("/etc/ravelin/ravelin.toml");
        Config::parse(text, path).err().map(|error| error.to_string())
    }

    #[test]
    fn a_number_out_of_its_bounds_is_refused_with_them() {
        for (section, key, least, most) in [
            ("storage", "scratch_gib", 1, 16_383),
            ("vmm", "overhead_mib", 16, 16_384),
            ("vmm", "starts", 0, 1024),
            ("sizing", "overhead_mib", 0, 131_072),
            ("sizing", "resize_headroom_mib", 0, 131_072),
            ("sizing", "default_cpu_millis", 10, 32_000),
            ("sizing", "default_memory_mib", 128, 131_072),
            ("timeouts", "queue_seconds", 1, 86_400),
            ("timeouts", "boot_seconds", 1, 86_400),
            ("timeouts", "layer_seconds", 1, 86_400),
            ("timeouts", "call_seconds", 1, 86_400),
            ("timeouts", "sync_seconds", 1, 86_400),
        ] {
            let of = |value: i64| verdict(&format!("[{section}]\n{key} = {value}"));
            assert_eq!((of(least), of(most)), (None, None), "{section}.{key}");
            for value in [least - 1, most + 1].into_iter().filter(|value| *value >= 0) {
                let expected = format!(
                    "the configuration /etc/ravelin/ravelin.toml is wrong: {section}.{key} is {value} and must be between {least} and {most}"
                );
                assert_eq!(of(value), Some(expected));
            }
        }
    }

    #[test]
    fn user_ids_leave_out_root_and_end_with_the_last() {
        assert!(verdict("[vmm]\nuid_base = 0").unwrap().contains("vmm.uid_base is 0 and must be greater"));
        let words = "vmm.uid_count is 16 and must be between 1 and 15: user ids have 32 bits";
        assert!(verdict("[vmm]\nuid_base = 4294967280\nuid_count = 16").unwrap().contains(words));
        assert_eq!(verdict("[vmm]\nuid_base = 4294967280\nuid_count = 15"), None);
        assert!(
            verdict("[vmm]\nuid_base = 1879048191")
                .unwrap()
                .contains("vmm.uid_base is 1879048191 and must be such")
        );
        assert_eq!(verdict("[vmm]\nuid_base = 1879048181\nuid_count = 10"), None);
        assert!(verdict("[vmm]\nuid_base = 1879048181\nuid_count = 11").is_some());
        assert!(verdict("[vmm]\nuid_count = 0").unwrap().contains("vmm.uid_count"));
    }

    #[test]
    fn what_pods_may_mount_of_the_node_is_neither_private_nor_inside_of_what_they_may_write_to() {
        let of = |list: &str| verdict(&format!("[policy]\nmode = \"guest\"\nhost_paths = [{list}]"));
        for good in [
            r#""/srv/a", "/srv/b:rw""#,
            r#""/srv/a", "/srv/a/rw:rw""#,
            r#""/srv/a:rw", "/srv/ab""#,
            r#""/var/log""#,
        ] {
            assert_eq!(of(good), None, "{good}");
        }
        for (bad, words) in [
            (r#""/srv/a:rw", "/srv/a/b""#, "must be outside of /srv/a, where pods may write (:rw)"),
            (r#""/srv/a/b/c:rw", "/srv/a:rw""#, "must be outside of /srv/a, where pods may write (:rw)"),
            (r#""/var""#, "must be apart from /var/lib/kubelet"),
            (r#""/var/lib/kubelet/pods:rw""#, "must be apart from /var/lib/kubelet"),
            (r#""/run""#, "must be apart from /run/containerd"),
            (r#""/var/lib/ravelin""#, "must be apart from /var/lib/ravelin"),
            (r#""/run/ravelin""#, "must be apart from /run/ravelin"),
            (r#""/etc/ravelin""#, "must be apart from /etc/ravelin"),
            (r#""/srv/a", "/srv/a:rw""#, "must be another directory than /srv/a, which is listed too"),
        ] {
            let error = of(bad).unwrap();
            assert!(error.contains(words), "{bad}: {error}");
        }
    }

    #[test]
    fn a_directory_that_pods_may_mount_is_known_by_the_path_that_it_really_has() {
        let node = tempfile::tempdir().unwrap();
        let real = node.path().canonicalize().unwrap().join("real");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, node.path().join("link")).unwrap();
        let file = Path::new("ravelin.toml");
        let parse = |list: &str| {
            let text =
                format!("[policy]\nhost_paths = [{}]", list.replace('@', node.path().to_str().unwrap()));
            Config::parse(&text, file).map_err(|error| error.to_string())
        };
        let config = parse(r#""@/link:rw""#).unwrap();
        let paths = config.policy.host_paths.iter().map(|host| (Path::new(&host.path), host.writable));
        let link = node.path().join("link");
        assert_eq!(paths.collect::<Vec<_>>(), [(link.as_path(), true), (real.as_path(), true)]);
        // Also where it is not there yet.
        for list in [r#""@/real:rw", "@/link/later""#, r#""@/link:rw", "@/real/later""#] {
            assert!(parse(list).unwrap_err().contains("where pods may write (:rw)"), "{list}");
        }
        assert!(parse(r#""@/real", "@/link""#).unwrap_err().contains("which is listed too"));
        assert_eq!(crate::config::real(&link.join("later/file")), real.join("later/file"));
    }

    #[test]
    fn roots_are_directories_by_which_paths_can_be_judged() {
        for root in
            ["", "/", "var/lib/kubelet", "/var/lib/kubelet/", "/var//lib", "/var/./lib", "/var/../lib"]
        {
            for key in ["kubelet", "containerd"] {
                let error = verdict(&format!("[roots]\n{key} = [\"/a\", {root:?}]")).unwrap();
                let words = format!("roots.{key} is {root:?} and must be absolute paths other than /");
                assert!(error.contains(&words), "{error}");
            }
        }
        assert_eq!(verdict("[roots]\ncontainerd = [\"/run/k3s/containerd\"]"), None);
    }
}
