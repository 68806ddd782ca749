//! Completes a container's OCI spec for the guest.
//!
//! The shim has taken out what belongs to the host. Here goes in what only the guest knows, and goes out what the
//! agent does itself or what names things of the host: cpusets, block devices, sysctls, hostname, seccomp filter.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Capabilities, Capability, Linux, LinuxCapabilities, LinuxCpu, LinuxMemory, LinuxNamespace,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResources, LinuxSeccomp, Process, RootBuilder, Spec,
};

use super::mounts::Source;
use crate::error::{AgentError, Result};

/// What the guest adds.
#[allow(missing_debug_implementations, reason = "it borrows functions")]
pub struct Guest<'a> {
    /// Container id.
    pub id: &'a str,
    /// The mounted root file system.
    pub rootfs: &'a Path,
    /// What stands behind mounts, by index in the spec's list.
    pub sources: &'a BTreeMap<usize, Source>,
    /// The PID namespace to join; `None` makes a new one.
    pub pid_namespace: Option<PathBuf>,
    /// Whether the process gets a terminal.
    pub terminal: bool,
    /// Finds a user's home directory, for a process whose environment lacks `HOME`.
    pub home: &'a dyn Fn(u32) -> String,
    /// Says whether the pod's cgroup has a control file, such as `memory.swap.max`.
    pub has_control: &'a dyn Fn(&str) -> bool,
}

/// A completed spec and what was taken out of it for the agent to do.
#[derive(Debug)]
pub struct Completed {
    /// For libcontainer.
    pub spec: Spec,
    /// To be compiled and loaded right before the program runs.
    pub seccomp: Option<LinuxSeccomp>,
    /// To be written in the guest's own namespaces, which are the pod's.
    pub sysctls: HashMap<String, String>,
}

/// Completes a spec.
///
/// # Errors
///
/// [`AgentError::Invalid`] when the spec lacks a process or asks for what a guest cannot give.
pub fn complete(mut spec: Spec, guest: &Guest<'_>) -> Result<Completed> {
    let invalid = |text: &str| AgentError::Invalid(format!("container {}: {text}", guest.id));
    let mut linux = spec.linux().clone().ok_or_else(|| invalid("the spec has no linux section"))?;
    let process = spec.process().clone().ok_or_else(|| invalid("the spec has no process"))?;

    let readonly = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let root = RootBuilder::default().path(guest.rootfs).readonly(readonly).build();
    spec.set_root(Some(root.map_err(|error| invalid(&error.to_string()))?));
    spec.set_hooks(None);
    // The pod's UTS namespace is the guest's, named once for all.
    spec.set_hostname(None);
    spec.set_domainname(None);

    let seccomp = linux.seccomp().clone();
    let sysctls = linux.sysctl().clone().unwrap_or_default();
    let process = complete_process(process, seccomp.is_some(), guest.terminal, None, guest.home)
        .map_err(|text| invalid(&text))?;
    spec.set_process(Some(process));
    complete_mounts(&mut spec, guest)?;

    linux.set_namespaces(Some(namespaces(&linux, guest).map_err(|text| invalid(&text))?));
    linux.set_cgroups_path(Some(Path::new("/pod").join(guest.id)));
    linux.set_resources(linux.resources().as_ref().map(|resources| limit(resources, guest.has_control)));
    linux.set_seccomp(None);
    linux.set_sysctl(None);
    linux.set_intel_rdt(None);
    linux.set_mount_label(None);
    linux.set_net_devices(None);
    spec.set_linux(Some(linux));
    Ok(Completed { spec, seccomp, sysctls })
}

/// Completes a process: a container's first one, or an exec's with `oom_score_adj` of its container.
///
/// # Errors
///
/// A sentence when the process cannot be run.
pub fn complete_process(
    mut process: Process,
    filtered: bool,
    terminal: bool,
    oom_score_adj: Option<i32>,
    home: &dyn Fn(u32) -> String,
) -> std::result::Result<Process, String> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err("the process has no arguments".to_owned());
    }
    process.set_terminal(Some(terminal));
    process.set_apparmor_profile(None);
    process.set_selinux_label(None);
    // Never the agent's own, which is exempt.
    process.set_oom_score_adj(Some(process.oom_score_adj().or(oom_score_adj).unwrap_or(0)));

    let mut env = process.env().clone().unwrap_or_default();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        // libcontainer would ask the C library, which in a static program loads code from the container.
        env.push(format!("HOME={}", home(process.user().uid())));
    }
    process.set_env(Some(env));

    let mut capabilities = process.capabilities().clone().unwrap_or_else(no_capabilities);
    // A set that is absent must mean none: libcontainer leaves it as it is, which would be the agent's.
    for (set, put) in [
        (capabilities.bounding().clone(), LinuxCapabilities::set_bounding as Setter),
        (capabilities.effective().clone(), LinuxCapabilities::set_effective),
        (capabilities.permitted().clone(), LinuxCapabilities::set_permitted),
        (capabilities.inheritable().clone(), LinuxCapabilities::set_inheritable),
        (capabilities.ambient().clone(), LinuxCapabilities::set_ambient),
    ] {
        put(&mut capabilities, Some(set.unwrap_or_default()));
    }
    if filtered && !process.no_new_privileges().unwrap_or(false) {
        // Loading the filter right before execve takes this capability. It ends there: what a program has after
        // execve follows from the other three sets alone (capabilities(7)).
        for (set, put) in [
            (capabilities.effective().clone(), LinuxCapabilities::set_effective as Setter),
            (capabilities.permitted().clone(), LinuxCapabilities::set_permitted),
        ] {
            let mut set = set.unwrap_or_default();
            set.insert(Capability::SysAdmin);
            put(&mut capabilities, Some(set));
        }
    }
    process.set_capabilities(Some(capabilities));
    // libcontainer takes "false" for a wish too.
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }
    Ok(process)
}

type Setter = fn(&mut LinuxCapabilities, Option<Capabilities>) -> &mut LinuxCapabilities;

fn no_capabilities() -> LinuxCapabilities {
    let mut none = LinuxCapabilities::default();
    none.set_bounding(None).set_effective(None).set_permitted(None).set_inheritable(None).set_ambient(None);
    none
}

/// Fills the guest's paths into the mounts; a bind mount without one is refused.
fn complete_mounts(spec: &mut Spec, guest: &Guest<'_>) -> Result<()> {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for (index, mount) in mounts.iter_mut().enumerate() {
        let mut options = mount.options().clone().unwrap_or_default();
        let bind = mount.typ().as_deref() == Some("bind")
            || options.iter().any(|option| option == "bind" || option == "rbind");
        match guest.sources.get(&index) {
            Some(source) => {
                mount.set_source(Some(source.path.clone()));
                mount.set_typ(Some("bind".to_owned()));
                if !options.iter().any(|option| option == "bind" || option == "rbind") {
                    options.push("rbind".to_owned());
                }
                if source.readonly {
                    options.retain(|option| option != "rw");
                    options.push("ro".to_owned());
                }
                mount.set_options(Some(options));
            }
            None if bind => {
                return Err(AgentError::Invalid(format!(
                    "container {}: nothing stands behind the bind mount at {}",
                    guest.id,
                    mount.destination().display()
                )));
            }
            None if mount.source().is_none() => {
                mount.set_source(Some(PathBuf::from(mount.typ().as_deref().unwrap_or("none"))));
            }
            None => {}
        }
    }
    if let Some(index) = guest.sources.keys().find(|index| **index >= mounts.len()) {
        return Err(AgentError::Invalid(format!(
            "container {}: a source is given for mount {index}, which the spec does not have",
            guest.id
        )));
    }
    spec.set_mounts(Some(mounts));
    Ok(())
}

/// Mount and cgroup namespaces are always the container's own; network, IPC and UTS are the guest's.
fn namespaces(linux: &Linux, guest: &Guest<'_>) -> std::result::Result<Vec<LinuxNamespace>, String> {
    let wanted = linux.namespaces().as_deref().unwrap_or_default();
    if wanted.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::User) {
        return Err("user namespaces are not supported in a microVM".to_owned());
    }
    let namespace = |kind, path: Option<&PathBuf>| {
        let mut builder = LinuxNamespaceBuilder::default().typ(kind);
        if let Some(path) = path {
            builder = builder.path(path.clone());
        }
        builder.build().map_err(|error| error.to_string())
    };
    Ok(vec![
        namespace(LinuxNamespaceType::Pid, guest.pid_namespace.as_ref())?,
        namespace(LinuxNamespaceType::Mount, None)?,
        namespace(LinuxNamespaceType::Cgroup, None)?,
    ])
}

/// The limits that mean something in the guest. The device rules are enforced by the agent itself.
#[must_use]
pub fn limit(resources: &LinuxResources, has_control: &dyn Fn(&str) -> bool) -> LinuxResources {
    let mut limits = LinuxResources::default();
    limits.set_devices(None);
    limits.set_memory(resources.memory().map(|memory| limit_memory(memory, has_control("memory.swap.max"))));
    limits.set_cpu(resources.cpu().as_ref().map(limit_cpu));
    limits.set_pids(*resources.pids());
    limits.set_hugepage_limits(resources.hugepage_limits().as_ref().map(|limits| {
        let known = |size: &String| has_control(&format!("hugetlb.{size}.max"));
        limits.iter().filter(|limit| known(limit.page_size())).cloned().collect()
    }));
    limits.set_unified(resources.unified().as_ref().map(|unified| {
        let known = |file: &str| !file.starts_with("cpuset.") && !file.contains('/') && has_control(file);
        unified.iter().filter(|(file, _)| known(file)).map(|(k, v)| (k.clone(), v.clone())).collect()
    }));
    limits
}

fn limit_memory(memory: LinuxMemory, swap: bool) -> LinuxMemory {
    let mut limits = LinuxMemory::default();
    limits.set_limit(memory.limit().filter(|limit| *limit != 0));
    limits.set_reservation(memory.reservation().filter(|reservation| *reservation != 0));
    if swap && limits.limit().is_some() {
        limits.set_swap(memory.swap());
    }
    limits
}

/// Everything but the host's CPU numbers and realtime budgets, which cgroup v2 lacks.
fn limit_cpu(cpu: &LinuxCpu) -> LinuxCpu {
    let mut limits = LinuxCpu::default();
    limits.set_shares(cpu.shares());
    limits.set_quota(cpu.quota().filter(|quota| *quota != 0));
    limits.set_period(cpu.period().filter(|period| *period != 0));
    limits.set_burst(cpu.burst());
    limits.set_idle(cpu.idle());
    limits
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
