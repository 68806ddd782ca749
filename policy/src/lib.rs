//! What a pod may ask for, how big its machine is, and what each of its mounts really is.
//!
//! Pure functions: no file is opened, nothing is remembered. The shim asks them about what a container runtime
//! sees (OCI specs and CRI annotations); a command line tool or an admission webhook can ask the same questions
//! about a whole pod.
//!
//! * [`check_sandbox`], [`check_container`], [`check_pod`]: the refusal of unsupported fields, in the words that AWS
//!   EKS Fargate uses, all violations in one message.
//! * [`size`]: the machine's size from the pod's requests, by Fargate's table.
//! * [`classify`]: what a bind mount's host path stands for.

mod capability;
mod check;
mod config;
mod file_volumes;
mod pod;
mod quantity;
mod refusal;
mod sizing;
mod view;
mod volumes;

pub use capability::{DEFAULT_CAPABILITIES, addable};
pub use check::{check_container, check_pod, check_sandbox};
pub use config::{Allow, Mode, PolicyConfig};
pub use file_volumes::{CSI_PLUGIN, CsiRecord, HostPath};
pub use pod::{
    Capabilities, Claim, ClaimSource, Claims, Container, ContainerPort, CsiSource, HostPathSource, Pod,
    PodSpec, ResourceRequirements, SecurityContext, Volume,
};
pub use quantity::{ParseQuantityError, Quantity};
pub use refusal::{ContainerViolation, HostField, Refusal, VolumeProblem, VolumeViolation};
pub use sizing::{
    FARGATE_TABLE, MAX_CPU_MILLIS, MAX_MEMORY_MIB, MIN_CPU_MILLIS, MIN_MEMORY_MIB, Requests,
    SandboxResources, Size, SizeError, SizingConfig, SizingMode, TableRow, pod_requests, size,
};
pub use view::{ContainerView, SandboxView};
pub use volumes::{
    PodIdentity, PushedKind, Roots, SANDBOX_CONTROLLER, Unsupported, VolumeKind, classify, missing_root,
    volume_directory,
};
