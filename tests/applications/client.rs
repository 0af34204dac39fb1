//! The applications' own client programs, in the client pod, spoken to line by line.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::frame::World;

/// How long an answer may take: more than a move.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client program that runs, with its one connection.
pub struct Client {
    kubectl: Child,
    input: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl Client {
    /// Starts a program in the client pod.
    pub fn start(world: &World, program: &[&str]) -> Result<Client> {
        let arguments = [&["exec", "-i", world.client()?, "--"], program].concat();
        let mut kubectl = world
            .cluster
            .kubectl_command(&arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("running kubectl")?;
        let input = kubectl.stdin.take().context("no stdin")?;
        let output = BufReader::new(kubectl.stdout.take().context("no stdout")?);
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Client { kubectl, input, lines })
    }

    /// Gives the program a line and returns the one with which it answers.
    pub fn ask(&mut self, line: &str) -> Result<String> {
        self.tell(line)?;
        match self.lines.recv_timeout(PATIENCE) {
            Ok(answer) => Ok(answer),
            Err(mpsc::RecvTimeoutError::Timeout) => bail!("no answer to {line:?}"),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                bail!("the client ended at {line:?}: its connection is lost")
            }
        }
    }

    /// Gives the program a line to which it answers nothing.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        self.input.write_all(format!("{line}\n").as_bytes()).context("the client ended")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}
