//! The real program, run as a person runs it, with a home of its own.

#![allow(dead_code, reason = "each file of tests uses a part")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take. The machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory that is a user's home, and everything else.
pub struct Home {
    dir: TempDir,
}

/// What a run left.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ran {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The run succeeded; its output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        self.ok();
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    #[track_caller]
    pub fn ok(&self) -> &Self {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.text(), self.stderr);
        self
    }

    /// The run failed with this code, and said each of these.
    #[track_caller]
    pub fn fails(&self, code: i32, says: &[&str]) {
        assert_eq!(
            self.code,
            code,
            "stdout: {}\nstderr: {}",
            self.text(),
            self.stderr
        );
        for part in says {
            assert!(self.stderr.contains(part), "{part:?} is not in: {}", self.stderr);
        }
    }
}

impl Home {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file with this text.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn command<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        self.at_home(&mut command).args(args);
        command
    }

    fn at_home<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("QUORATE_"))
        {
            command.env_remove(name);
        }
        command
            .env("HOME", self.dir.path())
            .env_remove("XDG_RUNTIME_DIR")
            .current_dir(self.dir.path())
    }

    /// Runs the program after words of the shell, such as a limit.
    pub fn run_after(&self, shell: &str, line: &str) -> Ran {
        Self::finish(self.command_after(shell, line), b"")
    }

    fn command_after(&self, shell: &str, line: &str) -> Command {
        let mut command = Command::new("sh");
        let program = env!("CARGO_BIN_EXE_quorate");
        self.at_home(&mut command)
            .args(["-c", &format!("{shell}; exec {program} {line}")]);
        command
    }

    /// Runs the program to its end.
    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        self.run_with(args, b"", &[])
    }

    /// Runs the program to its end, with standard input and variables.
    pub fn run_with<S: AsRef<std::ffi::OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        input: &[u8],
        vars: &[(&str, &str)],
    ) -> Ran {
        let mut command = self.command(args);
        command.envs(vars.iter().copied());
        Self::finish(command, input)
    }

    fn finish(mut command: Command, input: &[u8]) -> Ran {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A program that does not read its input has closed it.
        let _ = child.stdin.take().unwrap().write_all(input);
        let output = child.wait_with_output().unwrap();
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Words of one line.
    pub fn line(&self, line: &str) -> Ran {
        self.run(line.split_whitespace())
    }

    /// Starts a node, and waits until it serves.
    pub fn serve(&self, args: &[&str]) -> Server {
        let log = std::fs::File::create(
            self.path(
                &format!("log-{}", args.join("_").replace('/', "-"))
                    .chars()
                    .take(120)
                    .collect::<String>(),
            ),
        )
        .unwrap();
        self.serve_logging_to(args, log)
    }

    /// The same with this as its standard error.
    pub fn serve_logging_to(&self, args: &[&str], log: impl Into<Stdio>) -> Server {
        let command = self.command(["serve"].iter().chain(args));
        self.serving(command, log)
    }

    /// Starts a node after words of the shell, such as a limit, and waits until it serves.
    pub fn serve_after(&self, shell: &str, line: &str) -> Server {
        let log = std::fs::File::create(self.path("log-after")).unwrap();
        self.serving(self.command_after(shell, &format!("serve {line}")), log)
    }

    fn serving(&self, mut command: Command, log: impl Into<Stdio>) -> Server {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        if line.is_empty() {
            let status = child.wait().unwrap();
            panic!("{command:?} ended with {status}:\n{}", self.logs());
        }
        let address = line.trim_end().rsplit(' ').next().unwrap().to_owned();
        Server { child, address }
    }

    /// Starts a node whose two outputs are these, and does not wait for it.
    pub fn serve_into(&self, args: &[&str], stdout: impl Into<Stdio>, stderr: impl Into<Stdio>) -> Server {
        let mut command = self.command(["serve"].iter().chain(args));
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .unwrap();
        Server {
            child,
            address: String::new(),
        }
    }

    /// One node that needs no configuration.
    pub fn serve_alone(&self) -> Server {
        self.serve(&["--data-dir", "data", "--listen", "127.0.0.1:0"])
    }

    /// What all nodes logged.
    pub fn logs(&self) -> String {
        let mut all = String::new();
        for entry in std::fs::read_dir(self.dir.path()).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("log-") {
                std::fs::File::open(entry.path())
                    .unwrap()
                    .read_to_string(&mut all)
                    .unwrap();
            }
        }
        all
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// A node that runs; killed when dropped.
pub struct Server {
    child: Child,
    pub address: String,
}

impl Server {
    fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Every write to a file of its fails from now on. It must have been started with SIGXFSZ ignored.
    #[cfg(target_os = "linux")]
    pub fn fail_writes(&self) {
        use rustix::process::{Resource, Rlimit, prlimit};
        let nothing = Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        prlimit(Some(self.pid()), Resource::Fsize, nothing).unwrap();
    }

    /// What the kernel says of its process.
    #[cfg(target_os = "linux")]
    pub fn kernel_file(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).unwrap()
    }

    /// Asks it to stop and waits for it.
    pub fn stop(self) -> ExitStatus {
        self.stop_by(rustix::process::Signal::TERM)
    }

    /// The same by another signal. One alone: a second would end it without grace.
    pub fn stop_by(mut self, signal: rustix::process::Signal) -> ExitStatus {
        self.signal(signal);
        until("the node has stopped", || self.child.try_wait().unwrap())
    }

    /// Waits until it ends by itself.
    pub fn wait(mut self) -> ExitStatus {
        until("the node has ended", || self.child.try_wait().unwrap())
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a condition, for as long as is bearable.
#[track_caller]
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Ports that nobody has at this moment, all held until all are found: below those that the system gives to any socket
/// that asks, which would take a node's port while the node is away.
pub fn free_ports(count: usize) -> Vec<u16> {
    let sockets: Vec<_> = (0..1_000)
        .filter_map(|_| std::net::UdpSocket::bind(("127.0.0.1", rand::random_range(16_384..32_768))).ok())
        .take(count)
        .collect();
    assert_eq!(sockets.len(), count, "too few free ports");
    sockets
        .iter()
        .map(|socket| socket.local_addr().unwrap().port())
        .collect()
}

/// The page at a path of a server that speaks HTTP; `None` while nobody listens.
pub fn http(address: &str, path: &str) -> Option<String> {
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    Some(page)
}
