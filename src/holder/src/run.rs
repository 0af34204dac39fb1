//! The processes: a supervisor, or the holder of one migration.

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::MakeWriterExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use transship_host::HostRoot;
use transship_host::journal::{Journal, Line};
use transship_host::paths::{MigrationDir, Role};
use transship_host::record::RecordState;
use transship_host::task::Part;
use transship_runtime::Layout;

use crate::holder::Holder;
use crate::pod::{Pod, runc_program};
use crate::{control, leftovers, reserve, source, supervise, target};

/// How long watchers may take to fetch the last status of a holder that has finished.
const FAREWELL: Duration = Duration::from_secs(1);
/// How often a holder that has closed looks whether it stands in the way of the next one.
const REOPENED: Duration = Duration::from_millis(100);

/// Runs the supervisor until it is told to end. Holders live on.
pub fn supervise(host: &HostRoot) -> Result<ExitCode> {
    tracing_subscriber::registry()
        .with(filter())
        .with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false))
        .init();
    runtime()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            outcome = supervise::supervise(host) => outcome?,
            _ = terminate.recv() => tracing::info!("told to end; holders live on"),
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Runs the holder of the migration in `path`.
pub fn run(host: &HostRoot, path: &Path) -> Result<ExitCode> {
    let dir = MigrationDir::at(path);
    if dir.is_closed()? {
        return Ok(ExitCode::SUCCESS);
    }
    // A session of its own: no terminal and no supervisor takes it down with itself.
    if let Err(error) = rustix::process::setsid()
        && error != rustix::io::Errno::PERM
    {
        return Err(error).context("cannot start a session");
    }
    log_to(&dir)?;
    let task = dir.read_task()?.with_context(|| format!("{} has no task", path.display()))?;
    if dir.identify() != Some((&task.migration.uid, task.role)) {
        anyhow::bail!("{} holds the task of another migration", path.display());
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        migration = task.migration.name,
        uid = task.migration.uid,
        role = %task.role,
        pod = task.pod.uid,
        "holder"
    );
    let role = task.role;
    let holder = Arc::new(Holder::new(host.clone(), Layout::default(), dir.clone(), task));
    let done = runtime()?.block_on(async {
        match role {
            Role::Source => match open(&dir)? {
                Some((journal, lines)) => {
                    let (commands, server) = serve(&holder)?;
                    source::run(Arc::clone(&holder), journal, lines, commands).await?;
                    server.end(FAREWELL).await;
                    anyhow::Ok(true)
                }
                None => Ok(false),
            },
            Role::Target => match open(&dir)? {
                Some((journal, lines)) => {
                    let (commands, server) = serve(&holder)?;
                    target::run(Arc::clone(&holder), journal, lines, commands).await?;
                    server.end(FAREWELL).await;
                    anyhow::Ok(true)
                }
                None => Ok(false),
            },
        }
    })?;
    if !done {
        return Ok(ExitCode::from(supervise::LOCKED));
    }
    clean(&holder);
    let pod = Pod::load(&dir).ok().flatten();
    let clear = async |patience| {
        if let Some(pod) = &pod {
            let runc = runc_program(&host.runc_path_file());
            leftovers::clear(&holder.layout, &runc, pod, patience).await;
        }
    };
    runtime()?.block_on(async {
        // What is known already goes first: who dies after the mark does not come again.
        clear(Duration::ZERO).await;
        dir.close()?;
        tracing::info!("closed");
        let rest = async {
            let uid = &holder.task.pod.uid;
            leftovers::delete_tasks(&holder.layout, uid, leftovers::PATIENCE).await;
            clear(leftovers::PATIENCE).await;
        };
        tokio::select! {
            () = rest => {}
            () = opened_again(&dir) => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Waits until the migration is not closed any more: the pod was made again, and its holder is started when this one
/// has ended. One that is forgotten loses its directory as a whole.
async fn opened_again(dir: &MigrationDir) {
    while dir.closed().exists() || !dir.task().exists() {
        tokio::time::sleep(REOPENED).await;
    }
}

/// Opens the journal; none if another holder has it.
#[expect(clippy::type_complexity, reason = "the journal's own return type, optional")]
fn open<E: Serialize + DeserializeOwned>(
    dir: &MigrationDir,
) -> Result<Option<(Journal<E>, Vec<Line<E>>)>> {
    match Journal::open(&dir.journal()) {
        Ok(opened) => Ok(Some(opened)),
        Err(transship_host::Error::InUse { .. }) => Ok(None),
        Err(error) => Err(error).context("the journal cannot be used"),
    }
}

fn serve(holder: &Arc<Holder>) -> Result<(mpsc::Receiver<control::Command>, control::Server)> {
    let run = holder.host.holder(&holder.task.migration.uid, holder.task.role)?;
    let (sender, queue) = mpsc::channel(16);
    let server = control::serve(&run.control(), sender, holder.board.subscribe())?;
    ignore_termination(Arc::clone(holder));
    Ok((queue, server))
}

/// SIGTERM ends a holder only while nothing is frozen; what it has begun is undone at its next
/// start.
fn ignore_termination(holder: Arc<Holder>) {
    tokio::spawn(async move {
        let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
        while terminate.recv().await.is_some() {
            if !holder.is_frozen() {
                tracing::info!("told to end, and nothing is frozen");
                std::process::exit(0);
            }
            tracing::warn!("told to end, but containers are frozen: staying");
        }
    });
}

/// Removes what only this migration needed: sockets, images, trees.
fn clean(holder: &Holder) {
    reserve::give_up(&holder.dir);
    // The source goes on: nobody will be made of its copy.
    let record = holder.host.pod(&holder.task.pod.uid).and_then(|pod| pod.read_record());
    if holder.task.role == Role::Source
        && matches!(record, Ok(Some(record)) if record.state == RecordState::Open)
        && let Err(error) = transship_host::files::remove_tree(&holder.dir.kept())
    {
        tracing::warn!("{}", error.chain());
    }
    let run = holder.host.holder(&holder.task.migration.uid, holder.task.role);
    let directories = run
        .map(|run| run.path().to_path_buf())
        .into_iter()
        .chain(worthless(holder.task.part).iter().map(|name| holder.dir.path().join(name)));
    for directory in directories {
        if let Err(error) = transship_host::files::remove_tree(&directory) {
            tracing::warn!("{}", error.chain());
        }
    }
}

/// In the sequential order the pod may be made of its state again until the migration is forgotten.
fn worthless(part: Part) -> &'static [&'static str] {
    match part.is_sequential() {
        true => &["empty"],
        false => &["images", "trees", "empty", crate::connections::DIR],
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")
}

fn filter() -> EnvFilter {
    EnvFilter::try_from_env("TRANSSHIP_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,transship_holder=debug"))
}

/// Logs to `holder.log` in the migration's directory and to standard error.
fn log_to(dir: &MigrationDir) -> Result<()> {
    let path = dir.path().join("holder.log");
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let writer = Mutex::new(file).and(std::io::stderr);
    tracing_subscriber::registry()
        .with(filter())
        .with(tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false))
        .init();
    Ok(())
}
