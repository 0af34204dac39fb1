//! Measures a local transfer of memory pages: `cargo run --release -p transship-transport
//! --example throughput -- [MiB] [random|text|zero] [auto|always|never]`.
//!
//! The pages go the whole way (page-server protocol over a Unix socket, frames over another,
//! pages images in a temporary directory); the figure depends on that directory's file system.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use transship_criu::page_server::{self, Dialect};
use transship_transport::{
    Area, Compression, Handler, Hello, Link, Progress, Refusal, Sender, SenderOptions, TreeTarget,
    receive,
};

struct Store(PathBuf);

impl Handler for Store {
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

fn command(cmd: u32, nr_pages: u64, vaddr: u64) -> Vec<u8> {
    let mut raw = u64::from(cmd).to_le_bytes().to_vec();
    for word in [nr_pages, vaddr, 1 << 8 | 1] {
        raw.extend_from_slice(&word.to_le_bytes());
    }
    raw
}

fn contents(kind: &str) -> Vec<u8> {
    let mut state = 1u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    match kind {
        "zero" => vec![0; 1 << 20],
        "text" => (0..1 << 17).flat_map(|_| (random() % 64).to_le_bytes()).collect(),
        _ => (0..1 << 17).flat_map(|_| random().to_le_bytes()).collect(),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |n: usize, default: &str| args.get(n).cloned().unwrap_or_else(|| default.into());
    let mib: u64 = arg(0, "256").parse()?;
    let chunk = contents(&arg(1, "random"));
    let compression = match &*arg(2, "auto") {
        "always" => Compression::Always,
        "never" => Compression::Never,
        _ => Compression::Auto,
    };
    let dir = tempfile::tempdir()?;
    let (ours, theirs) = UnixStream::pair()?;
    let mut store = Store(dir.path().into());
    let target = std::thread::spawn(move || {
        let link = Link::unix(theirs).map_err(transship_transport::Error::Io)?;
        receive(link, &mut store, &Progress::default())
    });
    let options = SenderOptions { compression, ..SenderOptions::default() };
    let sender =
        Sender::start(Link::unix(ours)?, &Hello::new("m", "p", vec!["c".into()]), options)?;

    let (pages_in, mut criu) = UnixStream::pair()?;
    let client = std::thread::spawn(move || -> io::Result<()> {
        criu.write_all(&command(4, 0, 0))?;
        io::Read::read_exact(&mut criu, &mut [0])?;
        for n in 0..mib {
            criu.write_all(&command(6 | 4 << 16, 256, n << 20))?;
            criu.write_all(&chunk)?;
        }
        criu.write_all(&command(0x1024, 0, 0))?;
        io::Read::read_exact(&mut criu, &mut [0; 4])
    });
    let start = Instant::now();
    let mut pages = sender.pages("c")?;
    page_server::receive(pages_in, Dialect::Wide, &mut pages)?;
    client.join().map_err(|_| "client")??;
    sender.container_done("c")?;
    sender.all_done(Duration::from_secs(60))?;
    let took = start.elapsed();
    target.join().map_err(|_| "target")??;
    let progress = sender.progress();
    writeln!(
        io::stdout(),
        "{mib} MiB in {took:.0?}: {:.2} GB/s, {} MiB on the wire",
        (mib << 20) as f64 / took.as_secs_f64() / 1e9,
        progress.wire_bytes() >> 20,
    )?;
    Ok(())
}
