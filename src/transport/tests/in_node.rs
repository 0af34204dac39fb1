//! A process is dumped by a real CRIU, its pages and images go through a transfer, and a real CRIU
//! restores it from what arrived.
//!
//! Needs root and `criu`, so it runs only where `TRANSSHIP_IN_NODE=1` is set, that is inside a node
//! of the sandbox: `cargo xtask sandbox exec node-a -- env TRANSSHIP_IN_NODE=1 PATH_TO_BINARY`.
//! Anywhere else it says so and succeeds.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use transship_criu::dump_socket::{CONFIG_ENV, dump_socket};
use transship_criu::page_server::{Dialect, PageServerError, receive as receive_pages};
use transship_criu::stats::DumpStats;
use transship_criu::{repair, validate};
use transship_transport::{
    Area, Handler, Hello, Link, Progress, Refusal, Sender, SenderOptions, TreeTarget, receive,
};

const PAGES: usize = 24_000;
const PATIENCE: Duration = Duration::from_secs(30);

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|arg| arg == "workload") {
        workload(Path::new(&args[2]));
    }
    if std::env::var_os("TRANSSHIP_IN_NODE").is_none_or(|value| value != "1") {
        println!("in_node: skipped, TRANSSHIP_IN_NODE=1 is not set");
        return;
    }
    a_process_goes_on_from_images_that_came_through_a_transfer();
    a_dump_that_fails_is_seen_as_unfinished();
    println!("in_node: ok");
}

// === the process that moves ===

/// Answers each file `ask` with a file `answer`: its count of answers, and whether its memory is
/// what it was. It has pages of zeroes, pages of its own, and a memfd.
fn workload(dir: &Path) -> ! {
    let mut memory = vec![0u8; PAGES * 4096];
    for n in (0..PAGES).filter(|n| !n.is_multiple_of(3)) {
        memory[n * 4096..][..8].copy_from_slice(&(n as u64).to_le_bytes());
        memory[n * 4096 + 4000] = 7;
    }
    // Touched, and zero again.
    for n in (0..PAGES).step_by(3) {
        memory[n * 4096] = 1;
        memory[n * 4096] = 0;
    }
    let shared = rustix::fs::memfd_create("shared", rustix::fs::MemfdFlags::empty()).unwrap();
    let shared = File::from(shared);
    shared.write_all_at(&[5; 100_000], 50_000).unwrap();
    let mut answers = 0u64;
    loop {
        if fs::remove_file(dir.join("ask")).is_ok() {
            answers += 1;
            let own = (0..PAGES).all(|n| {
                let page = &memory[n * 4096..][..4096];
                if n.is_multiple_of(3) {
                    page.iter().all(|b| *b == 0)
                } else {
                    page[..8] == (n as u64).to_le_bytes() && page[4000] == 7
                }
            });
            let mut buffer = vec![0; 150_000];
            shared.read_exact_at(&mut buffer, 0).unwrap();
            let common = buffer[..50_000].iter().all(|b| *b == 0)
                && buffer[50_000..].iter().all(|b| *b == 5);
            fs::write(dir.join("answer.new"), format!("{answers} {own} {common}")).unwrap();
            fs::rename(dir.join("answer.new"), dir.join("answer")).unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn ask(dir: &Path) -> String {
    let _ = fs::remove_file(dir.join("answer"));
    File::create(dir.join("ask")).unwrap();
    let start = Instant::now();
    loop {
        if let Ok(answer) = fs::read_to_string(dir.join("answer")) {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "no answer");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn start(dir: &Path) -> std::process::Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("workload").arg(dir);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // A session of its own, as a container's init has.
    #[allow(unsafe_code)]
    // SAFETY: one system call between fork and exec.
    unsafe {
        command.pre_exec(|| Ok(rustix::process::setsid().map(|_| ())?));
    }
    command.spawn().unwrap()
}

// === the test ===

struct Images(PathBuf);

impl Handler for Images {
    fn hello(&mut self, _: &Hello) -> Result<(), Refusal> {
        Ok(())
    }
    fn tree(&mut self, _: &Area) -> Result<TreeTarget, Refusal> {
        Err(Refusal::new("Unexpected", "no tree is sent"))
    }
    fn images_dir(&mut self, _: &str) -> Result<PathBuf, Refusal> {
        Ok(self.0.clone())
    }
}

fn dump_command(pid: u32, dir: &Path) -> Command {
    let mut dump = Command::new("criu");
    dump.args(["dump", "-v4", "-o", "dump.log", "--manage-cgroups=ignore", "--leave-stopped"]);
    dump.args(["-t", &pid.to_string(), "-D"]).arg(dir.join("dump"));
    dump.arg("-W").arg(dir.join("work"));
    dump.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    dump
}

fn make_dirs(dir: &Path) {
    for name in ["dump", "work", "images"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
}

fn log(dir: &Path, name: &str) -> String {
    let mut text = String::new();
    File::open(dir.join("work").join(name))
        .and_then(|mut file| file.read_to_string(&mut text))
        .unwrap_or_default();
    text.lines().rev().take(20).collect::<Vec<_>>().join("\n")
}

fn a_process_goes_on_from_images_that_came_through_a_transfer() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    make_dirs(dir);
    let mut child = start(dir);
    assert_eq!(ask(dir), "1 true true");

    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut handler = Images(dir.join("images"));
    let target = std::thread::spawn(move || {
        receive(Link::unix(theirs).unwrap(), &mut handler, &Progress::default())
    });
    let hello = Hello::new("m", "p", vec!["app".into()]);
    let sender =
        Sender::start(Link::unix(ours).unwrap(), &hello, SenderOptions::default()).unwrap();

    let (pages_in, criu_end) = dump_socket().unwrap();
    fs::write(dir.join("criu.conf"), criu_end.config()).unwrap();
    let mut dump = dump_command(child.id(), dir);
    dump.env(CONFIG_ENV, dir.join("criu.conf"));
    criu_end.inherit(&mut dump);
    let started = Instant::now();
    let mut criu = dump.spawn().unwrap();
    drop(dump);
    let mut pages = sender.pages("app").unwrap();
    let received = receive_pages(pages_in, Dialect::Wide, &mut pages)
        .unwrap_or_else(|e| panic!("{e}\n{}", log(dir, "dump.log")));
    assert!(criu.wait().unwrap().success(), "{}", log(dir, "dump.log"));
    let took = started.elapsed();
    sender.send_image_dir("app", &dir.join("dump")).unwrap();
    sender.container_done("app").unwrap();
    let totals = sender.all_done(PATIENCE).unwrap();
    assert_eq!(target.join().unwrap().unwrap(), totals);
    assert!(received.bytes >= PAGES as u64 * 4096);
    assert_eq!(totals.pages * 4096, received.bytes);
    let progress = sender.progress();
    assert!(
        progress.plain_bytes() < received.bytes * 3 / 4,
        "zero pages are not sent: {progress:?}"
    );
    let stats = DumpStats::parse(&fs::read(dir.join("work/stats-dump")).unwrap()).unwrap();
    assert_eq!((stats.pages_written + stats.shared_pages_written) * 4096, received.bytes);
    println!("dumped {} MiB in {took:?}, {stats:?}", received.bytes >> 20);

    // Gone for good: what goes on is the restored one.
    child.kill().unwrap();
    child.wait().unwrap();
    let images = dir.join("images");
    validate::validate_image_set(&images).unwrap();
    assert_eq!(repair::fix_timerfds(&images).unwrap(), 0);
    let mut restore = Command::new("criu");
    restore.args(["restore", "-v4", "-o", "restore.log", "--manage-cgroups=ignore", "-d"]);
    restore.arg("--pidfile").arg(dir.join("pid"));
    restore.arg("-D").arg(&images).arg("-W").arg(dir.join("work"));
    restore.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(restore.status().unwrap().success(), "{}", log(dir, "restore.log"));
    let answer = ask(dir);
    let pid = fs::read_to_string(dir.join("pid")).unwrap();
    let killed = Command::new("kill").args(["-KILL", pid.trim()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(answer, "2 true true");
}

fn a_dump_that_fails_is_seen_as_unfinished() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    make_dirs(dir);
    let (pages_in, criu_end) = dump_socket().unwrap();
    fs::write(dir.join("criu.conf"), criu_end.config()).unwrap();
    // No such process.
    let mut dump = dump_command(u32::MAX >> 2, dir);
    dump.env(CONFIG_ENV, dir.join("criu.conf"));
    criu_end.inherit(&mut dump);
    let mut criu = dump.spawn().unwrap();
    drop(dump);
    let mut images = transship_criu::pagemap::PageImages::new(dir.join("images"));
    let result = receive_pages(pages_in, Dialect::Wide, &mut images);
    // A dump that fails after it has connected says goodbye all the same; without pages then.
    match result {
        Err(PageServerError::Unfinished) => {}
        Ok(received) => assert_eq!(received.destinations, 0),
        Err(other) => panic!("{other}"),
    }
    assert!(!criu.wait().unwrap().success());
    std::io::stdout().flush().unwrap();
}
