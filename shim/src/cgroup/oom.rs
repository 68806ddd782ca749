//! Whom the node's kernel kills first when memory is short: a machine is as expendable as the kubelet makes the containers
//! of its pod (Kubernetes: "Node out of memory behavior").

use std::fs;
use std::io;

/// The kubelet's score for containers of guaranteed pods.
const GUARANTEED: i32 = -997;
/// The kubelet's score for containers of best-effort pods.
const BEST_EFFORT: i32 = 1000;
/// The kubelet's highest score for containers of burstable pods, which is that of a pod with next to no requests.
const BURSTABLE: i32 = 999;

/// The score of a machine whose pod has this `linux.cgroupsPath`, as far as the path tells.
///
/// The kubelet puts best-effort and burstable pods into cgroups of those names, and guaranteed ones beside them. A
/// burstable pod's score depends on its memory request, which its containers' specs tell later (see [`lower`]). A pod of
/// nobody's making has 0, as runc would give its containers.
#[must_use]
pub fn score(cgroups_path: &str) -> i32 {
    // `/kubepods/burstable/pod…/id`, or with systemd `kubepods-burstable-pod….slice:cri-containerd:id`, also below others.
    let words: Vec<_> = cgroups_path.split(['/', ':', '-', '.']).collect();
    // A slice repeats the names of those above it; the innermost tells most.
    let Some(at) = words.iter().rposition(|word| *word == "kubepods") else { return 0 };
    match words.get(at + 1) {
        Some(&"besteffort") => BEST_EFFORT,
        Some(&"burstable") => BURSTABLE,
        Some(pod) if pod.starts_with("pod") => GUARANTEED,
        _ => 0,
    }
}

/// Gives a process this score.
///
/// # Errors
/// When the process is gone, or we may not.
pub fn set(pid: u32, score: i32) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/oom_score_adj"), score.clamp(-1000, 1000).to_string())
}

/// Gives a process this score if it is lower than the one it has: a machine is worth as much as the most valuable of its
/// containers.
///
/// # Errors
/// As [`set`].
pub fn lower(pid: u32, score: i32) -> io::Result<()> {
    let now = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
    let now: i32 = now.trim().parse().map_err(io::Error::other)?;
    if score < now { set(pid, score) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelets_cgroups_tell_the_quality_of_service() {
        for (path, expected) in [
            ("/kubepods/podab-cd/0123", -997),
            ("/kubepods/burstable/podab-cd/0123", 999),
            ("/kubepods/besteffort/podab-cd/0123", 1000),
            ("kubepods-podab_cd.slice:cri-containerd:0123", -997),
            ("kubepods-burstable-podab_cd.slice:cri-containerd:0123", 999),
            ("kubelet-kubepods-besteffort-podab_cd.slice:cri-containerd:0123", 1000),
            ("/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podab.slice/x", -997),
            ("/k8s.io/0123", 0),
            ("/ravelin/burstable", 0),
        ] {
            assert_eq!(score(path), expected, "{path}");
        }
    }

    #[test]
    fn a_score_is_only_ever_lowered() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let read = || fs::read_to_string(format!("/proc/{}/oom_score_adj", child.id())).unwrap();
        set(child.id(), 999).unwrap();
        // The second is above the first; raising is free, lowering below where it was needs privilege.
        lower(child.id(), 1000).unwrap();
        let raised = read();
        let lowered = lower(child.id(), 998).map(|()| read());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(raised, "999\n");
        if let Ok(lowered) = lowered {
            assert_eq!(lowered, "998\n");
        }
    }
}
