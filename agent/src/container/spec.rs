//! A container's OCI spec for the guest, built from what is known to mean the same there.
//!
//! The spec was written for the node. What passes is named here, field by field; what a container would miss and the guest
//! cannot give is refused by name, and the rest stays behind: it is the node's, or the agent does it itself (hostname,
//! sysctls, the seccomp filter, the AppArmor profile, device rules).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Capabilities, Capability, Linux, LinuxCapabilities, LinuxDevice, LinuxNamespace, LinuxNamespaceBuilder,
    LinuxNamespaceType, LinuxSeccomp, Mount, Process, RootBuilder, Spec,
};

use super::mount_options::{self, is_bind};
use super::mounts::Source;
use super::{limits, nodes};
use crate::apparmor;
use crate::error::{AgentError, Result};
use crate::namespaces::{Ids, Namespaces};

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
    /// The users and groups of the pod's user namespace, if it has one.
    pub ids: Option<&'a Ids>,
    /// Whether the process gets a terminal.
    pub terminal: bool,
    /// Says whether the pod's cgroup has a control file, such as `memory.swap.max`.
    pub has_control: &'a dyn Fn(&str) -> bool,
    /// The guest's own device nodes.
    pub nodes: &'a dyn Fn() -> Result<Vec<LinuxDevice>>,
}

/// A completed spec and what was taken out of it for the agent to do.
#[derive(Debug)]
pub struct Completed {
    /// For libcontainer.
    pub spec: Spec,
    /// To be compiled and loaded right before the program runs.
    pub seccomp: Option<LinuxSeccomp>,
    /// The AppArmor profile of the program.
    pub profile: Option<String>,
    /// To be written in the guest's own namespaces, which are the pod's.
    pub sysctls: HashMap<String, String>,
}

/// Makes the guest's spec of the node's.
///
/// # Errors
///
/// [`AgentError::Invalid`] when the spec lacks a process or asks for what a guest cannot give.
pub fn complete(node: &Spec, guest: &Guest<'_>) -> Result<Completed> {
    let invalid = |text: &str| AgentError::Invalid(format!("container {}: {text}", guest.id));
    let linux = node.linux().as_ref().ok_or_else(|| invalid("the spec has no linux section"))?;
    let process = node.process().clone().ok_or_else(|| invalid("the spec has no process"))?;
    let seccomp = linux.seccomp().clone();
    let mut process =
        complete_process(process, seccomp.is_some(), guest.terminal, None).map_err(|text| invalid(&text))?;
    let profile = process.apparmor_profile().clone();
    process.set_apparmor_profile(None);
    let readonly = node.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let root = RootBuilder::default().path(guest.rootfs).readonly(readonly).build();

    let mut spec = Spec::default();
    spec.set_version(node.version().clone());
    spec.set_root(Some(root.map_err(|error| invalid(&error.to_string()))?));
    spec.set_process(Some(process));
    spec.set_mounts(Some(complete_mounts(node.mounts().as_deref().unwrap_or_default(), guest)?));
    spec.set_linux(Some(complete_linux(linux, guest)?));
    // The pod's UTS namespace is the guest's, named once for all.
    spec.set_hostname(None).set_domainname(None);
    spec.set_hooks(None).set_annotations(None);
    Ok(Completed { spec, seccomp, profile, sysctls: linux.sysctl().clone().unwrap_or_default() })
}

fn complete_linux(node: &Linux, guest: &Guest<'_>) -> Result<Linux> {
    let refused = |what: &str| {
        Err(AgentError::Invalid(format!("container {}: {what} not supported in a microVM", guest.id)))
    };
    let mappings = [node.uid_mappings(), node.gid_mappings()].map(|all| all.as_deref().unwrap_or_default());
    match (guest.ids, mappings) {
        (None, [[], []]) => {}
        (Some(ids), [users, groups]) if ids.are(users, groups) => {}
        (None, _) => return refused("a user namespace that its pod does not have is"),
        (Some(_), _) => return refused("another user namespace than its pod's is"),
    }
    if node.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty()) {
        return refused("time offsets are");
    }
    if node.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
        return refused("network devices of the node are");
    }
    if node.memory_policy().is_some() {
        return refused("a memory policy is");
    }
    let resources = node.resources().as_ref();
    let rules = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
    let devices = nodes::choose(node.devices().as_deref().unwrap_or_default(), rules, guest.nodes)?;

    let mut linux = Linux::default();
    linux.set_namespaces(Some(namespaces(node, guest)?));
    linux.set_cgroups_path(Some(Path::new("/pod").join(guest.id)));
    linux.set_resources(resources.map(|resources| limits::limit(resources, guest.has_control)).transpose()?);
    linux.set_devices(Some(devices));
    linux.set_masked_paths(node.masked_paths().clone());
    linux.set_readonly_paths(node.readonly_paths().clone());
    linux.set_rootfs_propagation(rootfs_propagation(node)?);
    linux.set_personality(node.personality().clone());
    Ok(linux)
}

/// libcontainer's word for how the container's root spreads mounts. Only a container that may pass mounts on needs it to;
/// which volumes it takes mounts from, or keeps to itself, is decided by their sources.
fn rootfs_propagation(node: &Linux) -> Result<Option<String>> {
    match node.rootfs_propagation().as_deref() {
        Some("shared" | "rshared") => Ok(Some("shared".to_owned())),
        None | Some("" | "private" | "rprivate" | "slave" | "rslave") => Ok(None),
        Some(other) => Err(AgentError::Invalid(format!("the root's propagation {other:?} is not supported"))),
    }
}

/// Largest id of a user or group, as runc has it.
const MAX_ID: u32 = i32::MAX.cast_unsigned();

/// Completes a process: a container's first one, or an exec's with `oom_score_adj` of its container.
///
/// # Errors
///
/// A sentence when the process cannot be run.
pub fn complete_process(
    node: Process,
    filtered: bool,
    terminal: bool,
    oom_score_adj: Option<i32>,
) -> std::result::Result<Process, String> {
    if node.args().as_ref().is_none_or(Vec::is_empty) {
        return Err("the process has no arguments".to_owned());
    }
    for entry in node.env().iter().flatten() {
        check_variable(entry)?;
    }
    // setresuid and its kind take the largest number for "leave it as it is", which would be root.
    let ids = [node.user().uid(), node.user().gid()].into_iter();
    let mut ids = ids.chain(node.user().additional_gids().iter().flatten().copied());
    if let Some(id) = ids.find(|id| *id > MAX_ID) {
        return Err(format!("the user or group {id} does not exist: ids go from 0 to {MAX_ID}"));
    }
    let profile = apparmor::asked(node.apparmor_profile().as_deref());
    if profile.is_some_and(|name| name.len() > apparmor::MAX_NAME) {
        return Err(format!("the name of an AppArmor profile has more than {} bytes", apparmor::MAX_NAME));
    }
    let mut process = Process::default();
    process.set_apparmor_profile(profile.map(str::to_owned));
    process.set_terminal(Some(terminal)).set_console_size(node.console_size());
    process.set_user(node.user().clone()).set_cwd(node.cwd().clone());
    process.set_args(node.args().clone()).set_env(node.env().clone());
    process.set_capabilities(node.capabilities().clone()).set_rlimits(node.rlimits().clone());
    process.set_io_priority(*node.io_priority()).set_scheduler(node.scheduler().clone());
    // libcontainer takes "false" for a wish too.
    process.set_no_new_privileges(node.no_new_privileges().filter(|wished| *wished));
    // Never the agent's own, which is exempt.
    process.set_oom_score_adj(Some(node.oom_score_adj().or(oom_score_adj).unwrap_or(0)));

    let mut env = process.env().clone().unwrap_or_default();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        // To be filled in inside the container. Without it libcontainer would ask the C library, which in a static program
        // loads code from the container.
        env.push("HOME=".to_owned());
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
    Ok(process)
}

/// runc's rules for what may be an environment variable.
fn check_variable(entry: &str) -> std::result::Result<(), String> {
    match entry.split_once('=') {
        None => Err(format!("invalid environment variable: missing '=': {entry:?}")),
        Some(("", _)) => Err(format!("environment variable name can't be empty: {entry:?}")),
        Some(_) if entry.contains('\0') => {
            Err(format!("environment variable can't contain null (\\x00): {entry:?}"))
        }
        Some(_) => Ok(()),
    }
}

/// An exec's process, which has from its container's first one what it does not speak of, as with runc.
#[must_use]
pub fn inherit(mut process: Process, first: &Process) -> Process {
    if process.capabilities().is_none() {
        process.set_capabilities(first.capabilities().clone());
    }
    if process.rlimits().as_ref().is_none_or(Vec::is_empty) {
        process.set_rlimits(first.rlimits().clone());
    }
    if process.no_new_privileges().is_none() {
        process.set_no_new_privileges(first.no_new_privileges());
    }
    if process.apparmor_profile().as_ref().is_none_or(String::is_empty) {
        process.set_apparmor_profile(first.apparmor_profile().clone());
    }
    if process.io_priority().is_none() {
        process.set_io_priority(*first.io_priority());
    }
    if process.scheduler().is_none() {
        process.set_scheduler(first.scheduler().clone());
    }
    process
}

type Setter = fn(&mut LinuxCapabilities, Option<Capabilities>) -> &mut LinuxCapabilities;

fn no_capabilities() -> LinuxCapabilities {
    let mut none = LinuxCapabilities::default();
    none.set_bounding(None).set_effective(None).set_permitted(None).set_inheritable(None).set_ambient(None);
    none
}

/// The mounts with the guest's paths behind them; a bind mount without one is refused.
fn complete_mounts(node: &[Mount], guest: &Guest<'_>) -> Result<Vec<Mount>> {
    let invalid = |text: String| Err(AgentError::Invalid(format!("container {}: {text}", guest.id)));
    if let Some(index) = guest.sources.keys().find(|index| **index >= node.len()) {
        return invalid(format!("a source is given for mount {index}, which the spec does not have"));
    }
    let mut mounts = Vec::with_capacity(node.len());
    for (index, asked) in node.iter().enumerate() {
        let mut options = mount_options::allowed(asked, guest.ids)?;
        let mut mount = Mount::default();
        mount.set_destination(asked.destination().clone());
        match guest.sources.get(&index) {
            Some(source) => {
                mount.set_typ(Some("bind".to_owned())).set_source(Some(source.path.clone()));
                if !is_bind(asked) || !options.iter().any(|option| option == "bind" || option == "rbind") {
                    options.push("rbind".to_owned());
                }
                if source.readonly {
                    options.retain(|option| option != "rw" && option != "rrw");
                    options.push("ro".to_owned());
                }
                if source.nodev {
                    options.retain(|option| option != "dev" && option != "rdev");
                    options.push("nodev".to_owned());
                }
            }
            None if is_bind(asked) => {
                let destination = asked.destination().display();
                return invalid(format!("nothing stands behind the bind mount at {destination}"));
            }
            None => {
                let kind = asked.typ().as_deref().unwrap_or_default();
                // A name without meaning: nothing of the node's stands behind these.
                mount.set_typ(Some(kind.to_owned())).set_source(Some(PathBuf::from(kind)));
            }
        }
        mount.set_options(Some(options));
        mounts.push(mount);
    }
    Ok(mounts)
}

/// Mount and cgroup namespaces are always the container's own; network, IPC and UTS are the guest's, or those of the pod's user
/// namespace.
fn namespaces(node: &Linux, guest: &Guest<'_>) -> Result<Vec<LinuxNamespace>> {
    let wanted = node.namespaces().as_deref().unwrap_or_default();
    let wants = |kind| wanted.iter().any(|namespace| namespace.typ() == kind);
    if wants(LinuxNamespaceType::Time) {
        return Err(AgentError::Invalid(format!(
            "container {}: time namespaces are not supported in a microVM",
            guest.id
        )));
    }
    if wants(LinuxNamespaceType::User) != guest.ids.is_some() {
        return Err(AgentError::Invalid(format!(
            "container {}: its pod and it must have a user namespace both, or neither",
            guest.id
        )));
    }
    let namespace = |kind, path: Option<&PathBuf>| {
        let mut builder = LinuxNamespaceBuilder::default().typ(kind);
        if let Some(path) = path {
            builder = builder.path(path.clone());
        }
        builder.build().map_err(|error| AgentError::Failed(error.to_string()))
    };
    let mut all = vec![
        namespace(LinuxNamespaceType::Pid, guest.pid_namespace.as_ref())?,
        namespace(LinuxNamespaceType::Mount, None)?,
        namespace(LinuxNamespaceType::Cgroup, None)?,
    ];
    if guest.ids.is_some() {
        for (kind, name) in [
            (LinuxNamespaceType::User, "user"),
            (LinuxNamespaceType::Network, "net"),
            (LinuxNamespaceType::Ipc, "ipc"),
            (LinuxNamespaceType::Uts, "uts"),
        ] {
            all.push(namespace(kind, Some(&Namespaces::path(name)))?);
        }
    }
    Ok(all)
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
