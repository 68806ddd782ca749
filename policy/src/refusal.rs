//! The refusal and its words.

use std::fmt;

/// Everything about a pod that is not supported; never empty when returned as an error.
///
/// Its `Display` is the message AWS EKS Fargate's scheduler writes into the pod's events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusal {
    /// Host namespaces asked for.
    pub fields: Vec<HostField>,
    /// Volumes, in the order of the pod's spec.
    pub volumes: Vec<VolumeViolation>,
    /// One entry for each offending container: init containers first, then containers, then ephemeral ones.
    pub containers: Vec<ContainerViolation>,
    /// A port names a host address or a host port.
    pub ports: bool,
}

/// A host namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostField {
    /// `hostNetwork`.
    Network,
    /// `hostPID`.
    Pid,
    /// `hostIPC`.
    Ipc,
}

/// A volume that is not supported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeViolation {
    /// The volume's name; a runtime, which is not told the name, puts the host path here.
    pub volume: String,
    /// What is wrong with it.
    pub problem: VolumeProblem,
}

/// What is wrong with a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeProblem {
    /// Its source is of a type that Fargate does not know.
    Type {
        /// What would have it mounted all the same, in a sentence; the message does not tell it.
        way_around: Option<&'static str>,
    },
    /// Its claim does not exist.
    ClaimNotFound {
        /// The claim's name.
        claim: String,
    },
    /// Its claim has no volume yet.
    ClaimNotBound {
        /// The claim's name.
        claim: String,
    },
    /// Its claim is bound to a volume of an unsupported driver.
    InvalidVolume {
        /// The claim's name; a runtime is not told it.
        claim: Option<String>,
        /// The persistent volume's name.
        volume: String,
        /// The persistent volume's CSI driver, if it has one.
        driver: Option<String>,
    },
    /// A kind of volume that mode `fargate` does not grant; Ravelin's own addition to the grammar.
    Mode {
        /// Kubernetes's volume plugin, such as `kubernetes.io/nfs`.
        plugin: String,
    },
}

/// What is wrong with one container's security context.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerViolation {
    /// Added capabilities that are not allowed, as written in the pod's spec.
    pub capabilities: Vec<String>,
    /// `allowPrivilegeEscalation: true`.
    pub privilege_escalation: bool,
    /// `privileged: true`.
    pub privileged: bool,
}

impl Refusal {
    /// The reason code of the pod's `PodScheduled` condition that goes with this message.
    pub const REASON: &str = "POD_UNSUPPORTED_ON_FARGATE";

    /// A way around that the message does not tell, in Ravelin's words; to be shown beside the message, which stays Fargate's. Of
    /// several volumes the first one's.
    #[must_use]
    pub fn way_around(&self) -> Option<&'static str> {
        let of_a_volume = self.volumes.iter().find_map(|refused| refused.problem.way_around());
        if of_a_volume.is_some() {
            return of_a_volume;
        }
        let Self { fields, volumes, containers, ports: false } = self else { return None };
        let [ContainerViolation { capabilities, privilege_escalation: false, privileged: false }] =
            containers.as_slice()
        else {
            return None;
        };
        // What kubectl's profile `general`, its default, adds and nothing else does alone.
        let debugging = fields.is_empty() && volumes.is_empty() && capabilities == &["SYS_PTRACE"];
        debugging.then_some("kubectl debug adds no capability with --profile=baseline")
    }

    /// True if nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty() && self.volumes.is_empty() && self.containers.is_empty() && !self.ports
    }

    /// `Ok` if nothing is wrong.
    ///
    /// # Errors
    ///
    /// Returns itself if anything is.
    pub fn into_result(self) -> Result<(), Self> {
        if self.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl VolumeProblem {
    /// What would have the volume mounted, if the configuration can.
    fn way_around(&self) -> Option<&'static str> {
        match self {
            Self::Type { way_around } => *way_around,
            Self::InvalidVolume { driver: Some(_), .. } => {
                Some("csi_drivers in [policy] of ravelin.toml lists the drivers whose volumes are mounted")
            }
            Self::Mode { .. } => Some("mode = \"guest\" in [policy] of ravelin.toml mounts them"),
            _ => None,
        }
    }
}

impl ContainerViolation {
    /// True if nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.capabilities.is_empty() && !self.privilege_escalation && !self.privileged
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.fields.is_empty() {
            parts.push(format!("fields not supported: {}", join(&self.fields, ", ")));
        }
        if !self.volumes.is_empty() {
            parts.push(format!("volumes not supported: {}", join(&self.volumes, ", ")));
        }
        if !self.containers.is_empty() {
            // No space after this comma: that is how Fargate writes it.
            parts.push(format!("invalid SecurityContext fields: {}", join(&self.containers, ",")));
        }
        if self.ports {
            parts.push("port contains HostIP or HostPort".to_owned());
        }
        write!(f, "Pod not supported on Fargate: {}", parts.join(", "))
    }
}

impl fmt::Display for HostField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Network => "HostNetwork",
            Self::Pid => "HostPID",
            Self::Ipc => "HostIPC",
        })
    }
}

impl fmt::Display for VolumeViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let volume = &self.volume;
        match &self.problem {
            VolumeProblem::Type { .. } => write!(f, "{volume} is of an unsupported volume Type"),
            VolumeProblem::ClaimNotFound { claim } => {
                write!(f, "{volume} not supported because: persistentvolumeclaim \"{claim}\" not found")
            }
            VolumeProblem::ClaimNotBound { claim } => {
                write!(f, "{volume} not supported because: PVC {claim} not bound")
            }
            VolumeProblem::InvalidVolume { claim, volume: bound, driver } => {
                let claim = claim.iter().map(|claim| format!(" {claim}")).collect::<String>();
                write!(f, "{volume} not supported because: PVC{claim} bound to invalid PV {bound}")?;
                // What Fargate says of a volume without a driver is not known: the sentence ends before it.
                driver.as_ref().map_or(Ok(()), |driver| write!(f, " with CSI Driver: {driver}"))
            }
            VolumeProblem::Mode { plugin } => {
                write!(
                    f,
                    "{volume} not supported because: volumes of {plugin} are not supported in mode fargate"
                )
            }
        }
    }
}

impl fmt::Display for ContainerViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut items = Vec::new();
        if !self.capabilities.is_empty() {
            items.push(format!("Capabilities added: {}", self.capabilities.join(", ")));
        }
        if self.privilege_escalation {
            items.push("AllowPrivilegeEscalation".to_owned());
        }
        if self.privileged {
            items.push("Privileged".to_owned());
        }
        f.write_str(&items.join(", "))
    }
}

fn join<T: fmt::Display>(items: &[T], separator: &str) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(separator)
}
