//! The refusal of what a pod may not ask for.

use crate::capability::addable;
use crate::config::{Mode, PolicyConfig, Resolved};
use crate::file_volumes::ALLOW_INLINE_CSI;
use crate::pod::{Claim, Claims, Container, Pod, PodSpec, Volume};
use crate::refusal::{ContainerViolation, HostField, Refusal, VolumeProblem, VolumeViolation};
use crate::view::{ContainerView, SandboxView};

/// Judges a whole pod. `claims` holds the persistent volume claims of the pod's namespace.
///
/// # Errors
///
/// Everything that is not supported, at once.
pub fn check_pod(pod: &Pod, claims: &Claims, config: &PolicyConfig) -> Result<(), Refusal> {
    let allow = config.resolve();
    let spec = &pod.spec;
    Refusal {
        fields: host_fields(spec.host_network, spec.host_pid, spec.host_ipc, allow),
        volumes: spec
            .volumes
            .iter()
            .filter_map(|volume| {
                let problem = volume_problem(volume, claims, config)?;
                Some(VolumeViolation { volume: volume.name.clone(), problem })
            })
            .collect(),
        containers: containers(spec)
            .map(|container| container_violation(container, allow))
            .filter(|violation| !violation.is_empty())
            .collect(),
        ports: !allow.host_ports
            && containers(spec)
                .flat_map(|container| &container.ports)
                .any(|port| port.host_port != 0 || !port.host_ip.is_empty()),
    }
    .into_result()
}

/// Judges a sandbox by what its runtime sees of it, before a machine is started for it.
///
/// # Errors
///
/// Everything that is not supported, at once.
pub fn check_sandbox(view: &SandboxView, config: &PolicyConfig) -> Result<(), Refusal> {
    let allow = config.resolve();
    let violation = ContainerViolation {
        privileged: view.privileged && !allow.privileged,
        ..ContainerViolation::default()
    };
    Refusal {
        fields: host_fields(view.host_network, view.host_pid, view.host_ipc, allow),
        containers: Some(violation).filter(|violation| !violation.is_empty()).into_iter().collect(),
        ..Refusal::default()
    }
    .into_result()
}

/// Judges a container by what its runtime sees of it.
///
/// # Errors
///
/// Everything that is not supported, at once.
pub fn check_container(view: &ContainerView, config: &PolicyConfig) -> Result<(), Refusal> {
    let allow = config.resolve();
    let violation = ContainerViolation {
        // A privileged container has every capability without having added one.
        capabilities: if allow.capabilities || view.privileged {
            Vec::new()
        } else {
            view.added_capabilities.clone()
        },
        privilege_escalation: false,
        privileged: view.privileged && !allow.privileged,
    };
    Refusal {
        volumes: view.unsupported_volumes.clone(),
        containers: Some(violation).filter(|violation| !violation.is_empty()).into_iter().collect(),
        ..Refusal::default()
    }
    .into_result()
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().chain(&spec.containers).chain(&spec.ephemeral_containers)
}

fn host_fields(network: bool, pid: bool, ipc: bool, allow: Resolved) -> Vec<HostField> {
    [
        (HostField::Network, network && !allow.host_network),
        (HostField::Pid, pid && !allow.host_pid),
        (HostField::Ipc, ipc && !allow.host_ipc),
    ]
    .into_iter()
    .filter_map(|(field, refused)| refused.then_some(field))
    .collect()
}

fn container_violation(container: &Container, allow: Resolved) -> ContainerViolation {
    let context = &container.security_context;
    let added = &context.capabilities.add;
    ContainerViolation {
        capabilities: if allow.capabilities {
            Vec::new()
        } else {
            added.iter().filter(|name| !addable(name)).cloned().collect()
        },
        // Unset passes: only an explicit `true` asks for it.
        privilege_escalation: context.allow_privilege_escalation == Some(true) && !allow.privilege_escalation,
        privileged: context.privileged == Some(true) && !allow.privileged,
    }
}

fn volume_problem(volume: &Volume, claims: &Claims, config: &PolicyConfig) -> Option<VolumeProblem> {
    let guest = config.mode == Mode::Guest;
    if volume.host_path.as_ref().is_some_and(|host| config.host_path(&host.path).is_none()) {
        return Some(config.refused_host_path());
    }
    let inline = volume
        .csi
        .as_ref()
        .is_some_and(|csi| !config.resolve().inline_csi || !config.mounts_driver(&csi.driver));
    if inline {
        return Some(VolumeProblem::Type { way_around: Some(ALLOW_INLINE_CSI) });
    }
    let mut sources = volume.other.iter().filter(|(_, source)| source.is_some()).map(|(kind, _)| kind);
    let refused = |kind: &String| match kind.as_str() {
        "image" => config.image_volume(),
        // What the kubelet mounts for the pod.
        _ => (!guest).then_some(VolumeProblem::Type { way_around: None }),
    };
    if let Some(problem) = sources.find_map(refused) {
        return Some(problem);
    }
    let claim = volume.persistent_volume_claim.as_ref()?.claim_name.clone();
    match claims.get(&claim) {
        None => Some(VolumeProblem::ClaimNotFound { claim }),
        Some(Claim::Pending) => Some(VolumeProblem::ClaimNotBound { claim }),
        Some(Claim::Bound { driver, .. })
            if guest || driver.as_ref().is_some_and(|driver| config.mounts_driver(driver)) =>
        {
            None
        }
        Some(Claim::Bound { volume, driver }) => Some(VolumeProblem::InvalidVolume {
            claim: Some(claim),
            volume: volume.clone(),
            driver: driver.clone(),
        }),
    }
}

#[cfg(test)]
mod tests;
