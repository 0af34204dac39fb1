//! One container's dump: runc and CRIU write the small images to a directory, and the memory's
//! pages come to us through a socket that CRIU inherits and go straight on to the peer.
//!
//! The container is frozen before and must be frozen afterwards; CRIU thaws the cgroup in between
//! and holds the tasks by ptrace. A dump must never outlive its usefulness: a CRIU that ends late
//! would freeze a container that was thawed meanwhile. So nothing is thawed while a process of a
//! dump lives ([`end_leftovers`]): they are known by what no crash can come before. A CRIU that is
//! killed would let its tasks run; they are frozen before ([`Guard`]), while it is still found.

use std::net::Shutdown;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use tokio_util::sync::CancellationToken;
use transship_criu::dump_socket::dump_socket;
use transship_criu::page_server::{self, Dialect, Received};
use transship_criu::pages::PageSink;
use transship_host::freezer::FreezerState;
use transship_host::paths::{HostRoot, MigrationDir};
use transship_runtime::checkpoint::{
    Checkpoint, Running, group_is_alive, kill, kill_group, lose_criu, processes_of,
};
use transship_runtime::guard::Guard;
use transship_runtime::{Layout, repair};

use crate::pod::{FREEZER_LIMIT, Pod, PodContainer};

/// How long a dump whose page stream was cut may take to undo itself.
const UNDO: Duration = Duration::from_secs(3);
/// How long killed processes may take to vanish.
const REAP: Duration = Duration::from_secs(2);
/// How often processes that are to end are looked for.
const LOOK: Duration = Duration::from_millis(20);

/// What every dump of a migration has in common.
#[derive(Debug, Clone)]
pub struct Dumper {
    /// The node.
    pub host: HostRoot,
    /// containerd's and runc's directories.
    pub layout: Layout,
    /// The migration.
    pub dir: MigrationDir,
    /// The runc to call.
    pub runc: PathBuf,
    /// What the node's CRIU speaks.
    pub dialect: Dialect,
}

impl Dumper {
    /// The directory with the images of a container (without pages).
    pub fn images(&self, container: &str) -> Result<PathBuf> {
        Ok(self.dir.images(container)?)
    }

    /// Dumps one frozen container; its pages go to `sink`. `stop` ends it early.
    pub async fn dump<S: PageSink + Send + 'static>(
        &self,
        container: &PodContainer,
        sink: S,
        stop: &CancellationToken,
    ) -> Result<Received> {
        let images = self.images(&container.name)?;
        let work = self.dir.work(&container.name)?;
        for directory in [&images, &work] {
            transship_host::files::remove_tree(directory)?;
            transship_host::files::make_dir(directory)?;
        }
        let (ours, theirs) = dump_socket().context("cannot make a socket for the pages")?;
        let mut running = Checkpoint {
            id: &container.id,
            images: &images,
            work: &work,
            page_socket: theirs,
            bin: &self.host.opt().join("bin"),
            runc: &self.runc,
        }
        .start(&self.layout)?;
        let group = running.group().context("runc has no process id")?;
        let freezer = container.freezer.clone();
        let freeze = move || {
            tracing::warn!("a dump's CRIU ends without success, so its container is frozen");
            // Asked for is enough: no task gets past it.
            match freezer.freeze(Duration::ZERO) {
                Err(error) if !matches!(error, transship_host::Error::TimedOut { .. }) => {
                    tracing::warn!("{}", error.chain());
                }
                _ => {}
            }
        };
        let _guard =
            Guard::start(&self.layout, group, freeze).context("the dump is not guarded")?;

        let connection = ours.try_clone().context("cannot keep the page stream")?;
        let server = {
            let dialect = self.dialect;
            tokio::task::spawn_blocking(move || {
                let mut sink = sink;
                let received = page_server::receive(&ours, dialect, &mut sink);
                if received.is_err() {
                    // CRIU would wait for a reader for ever.
                    let _ = ours.shutdown(Shutdown::Both);
                }
                received.context("pages were not received")
            })
        };
        let outcome = tokio::select! {
            outcome = running.wait() => outcome.map_err(anyhow::Error::from),
            () = stop.cancelled() => Err(anyhow!("the dump was called off")),
            () = lose_criu(&self.layout, group) => Err(anyhow!("CRIU has ended in the middle of it")),
        };
        if outcome.is_err() {
            // CRIU fails the dump and undoes it.
            let _ = connection.shutdown(Shutdown::Both);
            end(&mut running, group, container).await;
        }
        let received = server.await.context("the page server failed")?;
        // What the page server says is the cause where CRIU only says that its peer went away.
        let received = match (outcome, received) {
            (Ok(()), received) => received?,
            (Err(error), received) => {
                // Worthless now, and perhaps what fills the disk that the journal needs.
                let _ = transship_host::files::remove_tree(&images);
                return Err(match received {
                    Err(cause) if !stop.is_cancelled() && is_cause(&cause) => cause.context(error),
                    _ => error,
                });
            }
        };
        // CRIU puts the freezer back as it was; a program that came between is made up for.
        if container.freezer.state()? != FreezerState::Frozen {
            tracing::warn!("container {} was not frozen after its dump", container.name);
            container.freezer.freeze(FREEZER_LIMIT)?;
            return Err(anyhow!("container {} ran during its dump", container.name));
        }
        Ok(received)
    }
}

/// Whether an error of the page server is more than CRIU's own end.
fn is_cause(error: &anyhow::Error) -> bool {
    use page_server::PageServerError as E;
    matches!(error.downcast_ref::<E>(), Some(E::Sink(_) | E::Command(_) | E::Run { .. }))
}

/// Waits until a dump whose page stream is cut has undone itself. One that does not is killed,
/// with the container frozen first: CRIU's death would let its tasks run.
async fn end(running: &mut Running, group: i32, container: &PodContainer) {
    if tokio::time::timeout(UNDO, running.wait()).await.is_err() {
        tracing::warn!("the dump of {} does not end and is killed", container.name);
        if let Err(error) = container.freezer.freeze(FREEZER_LIMIT) {
            tracing::warn!("{}", error.chain());
        }
        kill_group(group);
        let _ = running.wait().await;
    }
    await_group(group).await;
}

async fn await_group(group: i32) {
    let deadline = Instant::now() + REAP;
    while group_is_alive(group) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Ends what dumps of an earlier holder may have left: without it their page streams are cut, so
/// they undo themselves; if not they are killed while their container is frozen.
///
/// Errors: one does not end even so, as one that waits for a disk that does not answer.
pub async fn end_leftovers(layout: &Layout, dir: &MigrationDir, pod: &Pod) -> Result<()> {
    let works: Vec<(PathBuf, &PodContainer)> = pod
        .containers
        .iter()
        .filter_map(|container| Some((dir.work(&container.name).ok()?, container)))
        .collect();
    let paths: Vec<PathBuf> = works.iter().map(|(work, _)| work.clone()).collect();
    let left = await_end(layout, &paths, UNDO).await;
    if left.is_empty() {
        return Ok(());
    }
    for (place, pid) in left {
        let container = works[place].1;
        tracing::warn!(pid, "a former dump of {} does not end and is killed", container.name);
        if let Err(error) = container.freezer.freeze(FREEZER_LIMIT) {
            tracing::warn!("{}", error.chain());
        }
        kill(pid);
    }
    match await_end(layout, &paths, REAP).await.first() {
        // Its end would freeze the container.
        Some((place, pid)) => {
            bail!("process {pid} of a dump of {} does not end", works[*place].1.name)
        }
        None => Ok(()),
    }
}

/// Makes up for a CRIU that was killed while it dumped: what its tasks would send and receive failed.
pub fn mend_connections(layout: &Layout, dir: &MigrationDir, pod: &Pod) {
    for container in &pod.containers {
        // Otherwise nothing was dumped.
        if !dir.work(&container.name).is_ok_and(|work| work.exists()) {
            continue;
        }
        match container.freezer.tasks() {
            Ok(tasks) => drop(repair::end(layout, &tasks)),
            Err(error) => tracing::warn!("{}", error.chain()),
        }
    }
}

/// Waits until no process of these dumps lives, at most `limit`; gives those that do.
async fn await_end(layout: &Layout, works: &[PathBuf], limit: Duration) -> Vec<(usize, i32)> {
    let deadline = Instant::now() + limit;
    loop {
        let left = processes_of(layout, works);
        if left.is_empty() || Instant::now() >= deadline {
            return left;
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod_of_self;
    use transship_criu::dump_socket::CONFIG_ENV;

    #[tokio::test]
    async fn what_a_crashed_holder_left_is_ended_although_nobody_noted_it() {
        let root = tempfile::tempdir().unwrap();
        let dir = MigrationDir::at(root.path());
        let config = dir.work("web").unwrap().join("criu.conf");
        let mut left =
            std::process::Command::new("sleep").arg("60").env(CONFIG_ENV, config).spawn().unwrap();
        // Reaped as soon as it has ended, as init would.
        let reaped = tokio::task::spawn_blocking(move || left.wait().unwrap());
        end_leftovers(&Layout::default(), &dir, &pod_of_self()).await.unwrap();
        assert!(!reaped.await.unwrap().success());
    }
}
