//! Whole transfers over a Unix socket, and what happens when one goes wrong.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use transship_criu::PAGE_SIZE;
use transship_criu::pagemap::{PageImages, read_page};
use transship_criu::pages::{DstId, PageFlags, PageKind, PageRun, PageSink};
use transship_transport::{
    Area, Compression, Error, Handler, Hello, Link, Progress, Refusal, Sender, SenderOptions,
    Totals, TreeTarget, receive, tree,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Stores everything under one directory.
struct Store {
    dir: PathBuf,
    /// What to refuse: "hello", "tree", "done".
    refuse: &'static str,
    done: BTreeMap<String, Totals>,
}

impl Store {
    fn new(dir: &Path) -> Self {
        Self { dir: dir.into(), refuse: "", done: BTreeMap::new() }
    }

    fn allow(&self, what: &str) -> Result<(), Refusal> {
        if self.refuse == what { Err(Refusal::new("NotToday", "come back later")) } else { Ok(()) }
    }
}

impl Handler for Store {
    fn hello(&mut self, hello: &Hello) -> Result<(), Refusal> {
        assert_eq!((&*hello.migration, &*hello.pod_uid), ("mig", "pod"));
        self.allow("hello")
    }
    fn tree(&mut self, area: &Area) -> Result<TreeTarget, Refusal> {
        self.allow("tree")?;
        let name = area.to_string().replace('/', ".");
        if matches!(area, Area::Shm) {
            let dir = self.dir.join(name);
            fs::create_dir_all(&dir)?;
            return Ok(TreeTarget::Apply(dir));
        }
        Ok(TreeTarget::Spool(self.dir.join(name)))
    }
    fn images_dir(&mut self, container: &str) -> Result<PathBuf, Refusal> {
        let dir = self.dir.join("images").join(container);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }
    fn container_done(&mut self, container: &str, totals: &Totals) -> Result<(), Refusal> {
        self.done.insert(container.into(), *totals);
        Ok(())
    }
    fn all_done(&mut self, _: &Totals) -> Result<(), Refusal> {
        self.allow("done")
    }
}

type Received = (Result<Totals, Error>, Store);

fn target(socket: UnixStream, mut store: Store) -> JoinHandle<Received> {
    std::thread::spawn(move || {
        let result = receive(Link::unix(socket).unwrap(), &mut store, &Progress::default());
        (result, store)
    })
}

fn hello() -> Hello {
    Hello::new("mig", "pod", vec!["app".into(), "side".into()])
}

fn page(n: u64) -> Vec<u8> {
    // Every fourth page is zero.
    if n.is_multiple_of(4) { vec![0; 4096] } else { n.to_le_bytes().repeat(512) }
}

fn send_pages(sink: &mut dyn PageSink) -> io::Result<()> {
    let run = |vaddr, nr, flags| PageRun::checked(vaddr, nr, flags).unwrap();
    sink.open(DstId { kind: PageKind::Process, id: 1 })?;
    sink.hole(run(0x1000, 3, PageFlags::PARENT))?;
    // One run over several frames, then many small ones.
    let long: Vec<u8> = (0..700).flat_map(page).collect();
    sink.pages(run(0x10_0000, 700, PageFlags::PRESENT), &mut &long[..])?;
    for n in 0..1000 {
        sink.pages(run(0x1000_0000 + n * 8192, 1, PageFlags::PRESENT), &mut &page(n)[..])?;
    }
    sink.open(DstId { kind: PageKind::Shmem, id: 9 })?;
    sink.pages(run(0, 1, PageFlags::PRESENT), &mut &page(5)[..])?;
    sink.finish()
}

/// Everything that a pod of two containers has.
fn send_all(sender: &Sender, files: &Path) -> Result<Totals, Error> {
    sender.send_tree(&Area::Rootfs("app".into()), |out| tree::capture_upper(files, out))?;
    let pages = || -> Result<(), Error> {
        let mut pages = sender.pages("app")?;
        send_pages(&mut pages)
            .map_err(|e| transship_transport::transfer_error(e).unwrap_or_else(Error::Io))
    };
    // Pages and trees at the same time.
    std::thread::scope(|scope| {
        let pages = scope.spawn(pages);
        sender.send_tree(&Area::EmptyDir("data".into()), |out| tree::capture_dir(files, out))?;
        sender.send_tree(&Area::Shm, |out| tree::capture_dir(files, out))?;
        pages.join().unwrap()
    })?;
    for container in ["app", "side"] {
        sender.send_image(container, "inventory.img", &mut &[1; 100][..])?;
        sender.send_image(container, "core-1.img", &mut io::repeat(9).take(3_000_000))?;
        sender.container_done(container)?;
    }
    sender.all_done(PATIENCE)
}

fn some_files() -> tempfile::TempDir {
    let files = tempfile::tempdir().unwrap();
    fs::create_dir(files.path().join("d")).unwrap();
    fs::write(files.path().join("d/text"), "text ".repeat(500_000)).unwrap();
    fs::write(files.path().join("small"), "small").unwrap();
    files
}

#[test]
fn a_pod_arrives_whole_however_it_is_compressed() {
    for compression in [Compression::Always, Compression::Never, Compression::Auto] {
        let (files, dir) = (some_files(), tempfile::tempdir().unwrap());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let target = target(theirs, Store::new(dir.path()));
        let options = SenderOptions { compression, ..SenderOptions::default() };
        let sender = Sender::start(Link::unix(ours).unwrap(), &hello(), options).unwrap();
        let sent = send_all(&sender, files.path()).unwrap();
        let (received, store) = target.join().unwrap();
        assert_eq!(received.unwrap(), sent);
        assert_eq!(sent.items, 3 + 1 + 4);
        assert_eq!(sent.pages, 1701);
        assert_eq!(store.done.len(), 2);

        let images = dir.path().join("images/app");
        let process = DstId { kind: PageKind::Process, id: 1 };
        for n in [0, 1, 256, 699] {
            let found = read_page(&images, process, 0x10_0000 + n * PAGE_SIZE).unwrap();
            assert_eq!(found, Some(page(n)), "page {n}");
        }
        for n in [0, 1, 999] {
            let found = read_page(&images, process, 0x1000_0000 + n * 8192).unwrap();
            assert_eq!(found, Some(page(n)), "run {n}");
        }
        assert_eq!(read_page(&images, process, 0x1000).unwrap(), None);
        // The very files that a page server on the source would have written.
        let plain = tempfile::tempdir().unwrap();
        send_pages(&mut PageImages::new(plain.path())).unwrap();
        for entry in fs::read_dir(plain.path()).unwrap() {
            let name = entry.unwrap().file_name();
            let equal = fs::read(plain.path().join(&name)).unwrap()
                == fs::read(images.join(&name)).unwrap();
            assert!(equal, "{name:?}");
        }
        assert_eq!(fs::read(images.join("core-1.img")).unwrap(), vec![9; 3_000_000]);
        assert_eq!(
            fs::read(dir.path().join("shm/d/text")).unwrap(),
            fs::read(files.path().join("d/text")).unwrap()
        );
        let volume = tempfile::tempdir().unwrap();
        let spool = dir.path().join("emptydir.data");
        tree::apply_spool(&spool, volume.path(), tree::Kinds::All).unwrap();
        assert_eq!(fs::read(volume.path().join("small")).unwrap(), b"small");
        let progress = sender.progress();
        if compression == Compression::Always {
            assert!(progress.wire_bytes() < progress.plain_bytes() / 4, "{progress:?}");
        }
    }
}

#[test]
fn a_refusal_reaches_the_source_in_words() {
    for refuse in ["hello", "tree", "done"] {
        let (files, dir) = (some_files(), tempfile::tempdir().unwrap());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let target = target(theirs, Store { refuse, ..Store::new(dir.path()) });
        let sent = Sender::start(Link::unix(ours).unwrap(), &hello(), SenderOptions::default())
            .and_then(|sender| send_all(&sender, files.path()));
        match sent.unwrap_err() {
            Error::Peer { reason, message } => {
                assert_eq!((&*reason, &*message), ("NotToday", "NotToday: come back later"));
            }
            other => panic!("{refuse}: {other}"),
        }
        assert!(matches!(target.join().unwrap().0, Err(Error::Refused(_))), "{refuse}");
    }
}

#[test]
fn a_source_that_gives_up_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let target = target(theirs, Store::new(dir.path()));
    let sender =
        Sender::start(Link::unix(ours).unwrap(), &hello(), SenderOptions::default()).unwrap();
    sender.give_up("DumpFailed", "criu refused").unwrap();
    assert!(sender.container_done("app").is_err(), "nothing follows");
    let error = target.join().unwrap().0.unwrap_err();
    assert_eq!(error.to_string(), "the other node failed: criu refused (DumpFailed)");
    assert_eq!(error.reason(), "DumpFailed");
}

#[test]
fn images_that_a_checkpoint_must_not_have_are_refused_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("iptables-9.img"), "-A INPUT").unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let target = target(theirs, Store::new(dir.path()));
    let sender =
        Sender::start(Link::unix(ours).unwrap(), &hello(), SenderOptions::default()).unwrap();
    for result in [
        sender.send_image("app", "../x", &mut io::empty()).map(|_| ()),
        sender.send_image_dir("app", dir.path()).map(|_| ()),
    ] {
        assert!(matches!(result, Err(Error::ImageName(_))), "{result:?}");
    }
    // A container that was not announced.
    sender.send_image("other", "core-1.img", &mut io::empty()).ok();
    let error = target.join().unwrap().0.unwrap_err();
    assert_eq!(error.reason(), "ProtocolViolation", "{error}");
}

/// A writer that keeps a copy of everything.
struct Tap(UnixStream, Arc<Mutex<Vec<u8>>>);

impl Write for Tap {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.0.write(bytes)?;
        self.1.lock().unwrap().extend_from_slice(&bytes[..len]);
        Ok(len)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The bytes of a small transfer.
fn recorded() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let target = target(theirs, Store::new(dir.path()));
    let copy = Arc::new(Mutex::new(Vec::new()));
    let link = Link::new(
        ours.try_clone().unwrap(),
        Tap(ours.try_clone().unwrap(), Arc::clone(&copy)),
        move || drop(ours.shutdown(std::net::Shutdown::Both)),
    );
    let hello = Hello::new("mig", "pod", vec!["app".into()]);
    let sender = Sender::start(link, &hello, SenderOptions::default()).unwrap();
    let files = tempfile::tempdir().unwrap();
    fs::write(files.path().join("f"), "content").unwrap();
    sender.send_tree(&Area::Shm, |out| tree::capture_dir(files.path(), out)).unwrap();
    sender.send_image("app", "core-1.img", &mut &b"core"[..]).unwrap();
    let mut pages = sender.pages("app").unwrap();
    pages.open(DstId { kind: PageKind::Process, id: 1 }).unwrap();
    pages.pages(PageRun::checked(0, 2, PageFlags::PRESENT).unwrap(), &mut io::repeat(0)).unwrap();
    pages.finish().unwrap();
    sender.container_done("app").unwrap();
    sender.all_done(PATIENCE).unwrap();
    target.join().unwrap().0.unwrap();
    std::mem::take(&mut copy.lock().unwrap())
}

fn replay(bytes: &[u8]) -> Result<Totals, Error> {
    let dir = tempfile::tempdir().unwrap();
    let link = Link::new(io::Cursor::new(bytes.to_vec()), io::sink(), || {});
    receive(link, &mut Store::new(dir.path()), &Progress::default())
}

#[test]
fn a_transfer_cut_at_any_byte_is_never_complete() {
    let bytes = recorded();
    replay(&bytes).unwrap();
    for cut in 0..bytes.len() {
        assert!(replay(&bytes[..cut]).is_err(), "cut at {cut} of {}", bytes.len());
    }
}

#[test]
fn a_transfer_with_any_damaged_byte_is_never_complete() {
    let bytes = recorded();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        assert!(replay(&damaged).is_err(), "byte {at} of {}", bytes.len());
    }
}

#[test]
fn a_target_that_vanishes_ends_the_source_at_once() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let start = Instant::now();
    let result = Sender::start(Link::unix(ours).unwrap(), &hello(), SenderOptions::default());
    assert!(matches!(result.err(), Some(Error::Closed | Error::Io(_))));
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_silent_target_is_given_up() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let options =
        SenderOptions { hello_patience: Duration::from_millis(50), ..SenderOptions::default() };
    let result = Sender::start(Link::unix(ours).unwrap(), &hello(), options);
    assert!(matches!(result.err(), Some(Error::Timeout(_))));
}

#[test]
fn a_transfer_is_ended_from_another_thread() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let link = Link::unix(theirs).unwrap();
    let close = link.closer();
    let mut store = Store::new(dir.path());
    let target = std::thread::spawn(move || receive(link, &mut store, &Progress::default()));
    let _sender =
        Sender::start(Link::unix(ours).unwrap(), &hello(), SenderOptions::default()).unwrap();
    close();
    assert!(target.join().unwrap().is_err());
}

#[test]
fn the_bandwidth_limit_holds() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let target = target(theirs, Store::new(dir.path()));
    let options = SenderOptions {
        bandwidth_limit: 10_000_000,
        compression: Compression::Never,
        ..SenderOptions::default()
    };
    let sender = Sender::start(Link::unix(ours).unwrap(), &hello(), options).unwrap();
    let start = Instant::now();
    sender.send_image("app", "core-1.img", &mut io::repeat(1).take(6_000_000)).unwrap();
    // 6 MB at 10 MB/s, of which 1 MB goes at once.
    assert!(start.elapsed() > Duration::from_millis(450), "{:?}", start.elapsed());
    drop(sender);
    assert!(target.join().unwrap().0.is_err());
}
