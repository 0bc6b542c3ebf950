//! The programs that are compared: where they are, how they are run and ended.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

/// The etcd to run, or how to get one.
pub fn etcd(given: Option<&Path>) -> Result<PathBuf> {
    const ADVICE: &str = "get one: on Debian `apt install etcd-server`; or unpack a release of \
                          https://github.com/etcd-io/etcd/releases and give its program as --etcd FILE or in the variable ETCD";
    match given {
        Some(given) if given.is_file() => Ok(given.to_owned()),
        Some(given) => bail!("there is no etcd at {}; {ADVICE}", given.display()),
        None => on_path("etcd").with_context(|| format!("there is no etcd on PATH; {ADVICE}")),
    }
}

/// The quorate to run.
pub fn quorate(given: Option<&Path>) -> Result<PathBuf> {
    const ADVICE: &str = "build it with `cargo build --release -p quorate`, or give it as --quorate FILE or in the variable QUORATE";
    if let Some(given) = given {
        return match given.is_file() {
            true => Ok(given.to_owned()),
            false => bail!("there is no quorate at {}; {ADVICE}", given.display()),
        };
    }
    let beside = std::env::current_exe()
        .ok()
        .map(|own| own.with_file_name("quorate"));
    beside
        .filter(|program| program.is_file())
        .or_else(|| on_path("quorate"))
        .with_context(|| format!("there is no quorate beside this program or on PATH; {ADVICE}"))
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|program| program.is_file())
}

/// What a program says that it is.
pub fn version(program: &Path, name: &str) -> String {
    let said = Command::new(program).arg("--version").output();
    let said = said
        .map(|said| String::from_utf8_lossy(&said.stdout).into_owned())
        .unwrap_or_default();
    let first = said.lines().next().unwrap_or_default().trim();
    match first.is_empty() {
        true => name.to_owned(),
        false => first.to_owned(),
    }
}

/// A process that ends with this.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program, which logs into a file of `dir`.
    pub fn start(mut command: Command, dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let log = dir.join("log.txt");
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .with_context(|| format!("{} cannot be started", command.get_program().display()))?;
        Ok(Self { child, log })
    }

    /// Demands that it runs.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(20).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                bail!("a node ended ({status}):\n{}", tail.join("\n"))
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command without what this user's environment says to such a program.
pub fn command(program: &Path, prefix: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with(prefix) {
            command.env_remove(name);
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_etcd_it_says_how_to_get_one() {
        let refused = etcd(Some(Path::new("/nowhere/etcd"))).unwrap_err().to_string();
        for part in ["/nowhere/etcd", "apt install etcd-server", "ETCD"] {
            assert!(refused.contains(part), "{part}: {refused}");
        }
        let refused = quorate(Some(Path::new("/nowhere/quorate")))
            .unwrap_err()
            .to_string();
        assert!(refused.contains("cargo build --release -p quorate"), "{refused}");
    }
}
