//! What is left of a sandbox whose shim and machine are dead.

use std::fs;
use std::path::{Path, PathBuf};

use super::Shim;
use crate::{Run, eventually};

impl Shim<'_> {
    /// Kills shim and machine at once, and takes the bundle away: nobody is left who would clean up after them, and
    /// nobody who would ask for it.
    #[track_caller]
    pub fn abandon(&self) {
        let processes = [self.connect(), self.machine()].map(|pid| pid.to_string());
        Run::new("kill").arg("-KILL").args(&processes).ok();
        for process in processes {
            let process = Path::new("/proc").join(process);
            eventually("shim and machine have ended", || (!process.exists()).then_some(()));
        }
        fs::remove_dir_all(self.folder.join(&self.id)).expect("the bundle can be removed");
    }

    /// Whatever of the sandbox is on the host: its state, cgroup, socket, tap and redirects.
    #[must_use]
    pub fn remains(&self) -> Vec<String> {
        let cgroups = ["", "cpu", "memory", "pids"];
        let mut paths: Vec<PathBuf> = cgroups
            .iter()
            .map(|root| Path::new("/sys/fs/cgroup").join(root).join("shim-tests").join(&self.id))
            .collect();
        paths.push(Path::new("/run/ravelin").join(&self.id));
        paths.push(PathBuf::from(self.address.trim_start_matches("unix://")));
        let paths = paths.iter().filter(|path| path.exists()).map(|path| path.display().to_string());
        let asked = [
            "tc -n ID filter show dev eth0 ingress",
            "tc -n ID qdisc show dev eth0 ingress",
            "ip -n ID -o link show dev ravelin0",
        ];
        // Where there is nothing to show, some of them fail.
        let said = asked.map(|line| {
            let line = line.replace("ID", &self.id);
            let (program, arguments) = line.split_once(' ').unwrap_or_default();
            Run::new(program).args(arguments.split(' ')).run()
        });
        let said = said.iter().filter(|done| !done.text().trim().is_empty());
        paths.chain(said.map(|done| format!("{}: {}", done.line, done.text().trim()))).collect()
    }
}
