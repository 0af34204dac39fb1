//! Running a command on the host: in the namespaces of the host's first process. Where the agent
//! itself runs on the host (its host root is `/`), commands are run as they are.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// What a command printed and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Whether its exit status was 0.
    pub success: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// What a person wants to read of a failure: the last line with text on standard error, else
    /// on standard output.
    pub fn complaint(&self) -> String {
        let last =
            |text: &str| text.lines().rev().find(|l| !l.trim().is_empty()).map(|l| l.trim().into());
        last(&self.stderr).or_else(|| last(&self.stdout)).unwrap_or_else(|| "no message".into())
    }
}

/// Why a command could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be started.
    #[error("cannot run {program} on the host")]
    Start {
        /// The program.
        program: String,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// It did not end in time and was killed.
    #[error("{program} did not end within {seconds} s and was killed")]
    TooLong {
        /// The program.
        program: String,
        /// The limit.
        seconds: u64,
    },
}

/// How to reach the host.
#[derive(Debug, Clone)]
pub struct HostNs {
    on_host: bool,
}

/// The namespaces of the host's first process that commands join. The process namespace is the
/// agent's own already (hostPID); joining it would only cost another fork.
const NAMESPACES: [&str; 5] = ["--mount", "--uts", "--ipc", "--net", "--cgroup"];

impl HostNs {
    /// `root` is where the agent sees the host's root directory.
    pub fn new(root: &Path) -> Self {
        Self { on_host: root == Path::new("/") }
    }

    /// A command that will run on the host, with the host's standard PATH.
    pub fn command(&self, program: &str) -> Command {
        let mut command = if self.on_host {
            Command::new(program)
        } else {
            let mut nsenter = Command::new("nsenter");
            nsenter.args(["--target", "1"]).args(NAMESPACES).arg("--").arg(program);
            nsenter
        };
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end, at most `limit` long.
    pub async fn run(&self, argv: &[&str], limit: Duration) -> Result<Output, Error> {
        let (program, arguments) = argv.split_first().unwrap_or((&"true", &[]));
        let mut command = self.command(program);
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let start = |source| Error::Start { program: (*program).to_owned(), source };
        let child = command.spawn().map_err(start)?;
        match tokio::time::timeout(limit, child.wait_with_output()).await {
            Ok(Ok(output)) => Ok(Output {
                success: output.status.success(),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            }),
            Ok(Err(source)) => Err(start(source)),
            Err(_) => {
                Err(Error::TooLong { program: (*program).to_owned(), seconds: limit.as_secs() })
            }
        }
    }

    /// Runs a shell command, as a person would type it on the host.
    pub async fn shell(&self, line: &str, limit: Duration) -> Result<Output, Error> {
        self.run(&["sh", "-c", line], limit).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_tells_how_it_ended_and_what_it_said() {
        let host = HostNs::new(Path::new("/"));
        let output =
            host.shell("echo out; echo first >&2; echo last >&2; exit 3", Duration::from_secs(10));
        let output = output.await.unwrap();
        assert!(!output.success);
        assert_eq!(output.stdout, "out\n");
        assert_eq!(output.complaint(), "last");
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_ended() {
        let host = HostNs::new(Path::new("/"));
        let error = host.run(&["sleep", "60"], Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, Error::TooLong { .. }), "{error}");
    }

    #[test]
    fn a_pod_goes_through_the_first_process() {
        let command = HostNs::new(Path::new("/host")).command("runc");
        let argv: Vec<_> = command.as_std().get_args().map(|a| a.to_string_lossy()).collect();
        assert_eq!(argv[..2], ["--target", "1"]);
        assert_eq!(argv.last().unwrap(), "runc");
    }
}
