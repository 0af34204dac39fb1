//! The target's side: reads the stream, stores what it carries where the [`Handler`] says, and
//! acknowledges only what it has verified.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use transship_criu::pagemap::PageImages;
use transship_criu::pages::DstId;
use transship_criu::validate::is_allowed_name;

use crate::error::{Error, Refusal, Result};
use crate::frame::{FrameReader, FrameWriter, Hashed, Incoming, Kind, Outgoing};
use crate::link::Link;
use crate::message::{
    Ack, AllDone, Area, ContainerDone, Failed, Hello, ImageStart, ItemCount, ItemEnd, PagesStart,
    Stage, Totals, TreeStart, VERSION, from_meta, to_meta,
};
use crate::pages::decode;
use crate::progress::Progress;
use crate::tree::Applier;

/// Most items open at the same time.
const MAX_OPEN: usize = 64;
/// Most containers of a pod.
const MAX_CONTAINERS: usize = 256;

/// Where a received tree goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TreeTarget {
    /// Into this file (created, mode 0600), to be applied later with
    /// [`apply_spool`](crate::tree::apply_spool).
    Spool(PathBuf),
    /// Into this directory, at once.
    Apply(PathBuf),
}

/// Decides where things go, and is told when they are there.
pub trait Handler {
    /// A source introduces itself. Refuse it if it is not the one expected.
    fn hello(&mut self, hello: &Hello) -> Result<(), Refusal>;

    /// A tree follows. Each area comes at most once.
    fn tree(&mut self, area: &Area) -> Result<TreeTarget, Refusal>;

    /// A tree is complete and its digest was right.
    fn tree_done(&mut self, area: &Area) -> Result<(), Refusal> {
        let _ = area;
        Ok(())
    }

    /// The directory for the images and pages of a container, which must exist. Files are
    /// created in it, none is replaced.
    fn images_dir(&mut self, container: &str) -> Result<PathBuf, Refusal>;

    /// All images and pages of a container are there and their totals were right.
    fn container_done(&mut self, container: &str, totals: &Totals) -> Result<(), Refusal> {
        let _ = (container, totals);
        Ok(())
    }

    /// Everything is there. The source gets its acknowledgement when this returns.
    fn all_done(&mut self, totals: &Totals) -> Result<(), Refusal> {
        let _ = totals;
        Ok(())
    }
}

/// Receives one pod's state, until everything is there and acknowledged.
///
/// On an error the source is told why (as far as the connection allows); what has been stored so
/// far stays for the caller to remove. To end it from outside, use [`Link::closer`].
pub fn receive(link: Link, handler: &mut dyn Handler, progress: &Progress) -> Result<Totals> {
    let Link { reader, writer, closer: _ } = link;
    let mut writer = FrameWriter::new(writer);
    let mut session = Session {
        handler,
        progress,
        hello: None,
        open: HashMap::new(),
        areas: BTreeSet::new(),
        paged: BTreeSet::new(),
        containers: BTreeMap::new(),
        done: BTreeSet::new(),
        totals: Totals::default(),
    };
    let result = session.run(&mut FrameReader::new(reader), &mut writer);
    if let Err(error) = &result
        && !matches!(error, Error::Peer { .. } | Error::Closed)
    {
        // The connection may be what failed; there is nothing more to do then.
        let failed = Failed::new(error.reason(), &error.to_string());
        let _ = to_meta(&failed).map(|meta| say(&mut writer, Kind::Failed, &meta));
    }
    result
}

fn say(writer: &mut FrameWriter<impl Write>, kind: Kind, meta: &[u8]) -> Result<()> {
    writer.write(&Hashed::new(Outgoing::meta(kind, 0, meta))).map_err(Error::Io)
}

struct Session<'a> {
    handler: &'a mut dyn Handler,
    progress: &'a Progress,
    hello: Option<Hello>,
    open: HashMap<u32, Item>,
    areas: BTreeSet<Area>,
    /// Containers that have had their page stream.
    paged: BTreeSet<String>,
    containers: BTreeMap<String, Totals>,
    done: BTreeSet<String>,
    totals: Totals,
}

struct Item {
    count: ItemCount,
    pages: u64,
    what: What,
}

enum What {
    Tree { area: Area, target: TreeWriter },
    Image { container: String, name: String, file: File },
    Pages { container: String, images: PageImages },
}

enum TreeWriter {
    Spool(File),
    Apply(Box<Applier>),
}

impl What {
    fn container(&self) -> Option<&str> {
        match self {
            What::Tree { .. } => None,
            What::Image { container, .. } | What::Pages { container, .. } => Some(container),
        }
    }

    fn describe(&self) -> String {
        match self {
            What::Tree { area, .. } => format!("tree {area}"),
            What::Image { container, name, .. } => format!("image {name} of {container}"),
            What::Pages { container, .. } => format!("pages of {container}"),
        }
    }
}

fn violation(what: impl Into<String>) -> Error {
    Error::Protocol(what.into())
}

fn create(path: &Path) -> Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| Error::File { what: path.display().to_string(), source })
}

impl Session<'_> {
    fn run(
        &mut self,
        frames: &mut FrameReader<impl io::Read>,
        writer: &mut FrameWriter<impl Write>,
    ) -> Result<Totals> {
        loop {
            let frame = frames.read()?.ok_or(Error::Closed)?;
            self.progress.add(frame.data.len(), frame.wire_len);
            if self.hello.is_none() && !matches!(frame.kind, Kind::Hello | Kind::Failed) {
                return Err(violation("no hello"));
            }
            match frame.kind {
                Kind::Hello => {
                    self.hello(from_meta(frame.meta)?)?;
                    say(writer, Kind::Ack, &to_meta(&Ack { stage: Stage::Hello })?)?;
                }
                Kind::TreeStart | Kind::ImageStart | Kind::PagesStart => self.start(&frame)?,
                Kind::TreeData | Kind::ImageData | Kind::PagesOpen | Kind::Pages => {
                    self.content(&frame)?;
                }
                Kind::TreeEnd | Kind::ImageEnd | Kind::PagesEnd => self.end(&frame)?,
                Kind::ContainerDone => self.container_done(from_meta(frame.meta)?)?,
                Kind::AllDone => {
                    let totals = self.all_done(from_meta(frame.meta)?)?;
                    say(writer, Kind::Ack, &to_meta(&Ack { stage: Stage::Complete })?)?;
                    return Ok(totals);
                }
                Kind::Failed => {
                    let Failed { reason, message } = Failed::received(frame.meta)?;
                    return Err(Error::Peer { reason, message });
                }
                Kind::Ack => return Err(violation("acknowledgement from the source")),
            }
        }
    }

    fn hello(&mut self, hello: Hello) -> Result<()> {
        if self.hello.is_some() {
            return Err(violation("second hello"));
        }
        if hello.version != VERSION {
            return Err(Error::Version { ours: VERSION, theirs: hello.version });
        }
        if hello.containers.len() > MAX_CONTAINERS {
            return Err(violation("too many containers"));
        }
        self.handler.hello(&hello).map_err(Error::Refused)?;
        self.hello = Some(hello);
        Ok(())
    }

    /// A container that was announced and is not done yet.
    fn expects(&self, container: &str) -> Result<()> {
        let announced =
            self.hello.as_ref().is_some_and(|h| h.containers.iter().any(|c| c == container));
        if !announced || self.done.contains(container) {
            return Err(violation(format!("data of container {container:?} not expected")));
        }
        Ok(())
    }

    fn start(&mut self, frame: &Incoming<'_>) -> Result<()> {
        if self.open.len() >= MAX_OPEN || self.open.contains_key(&frame.stream) {
            return Err(violation(format!("stream {} cannot be opened", frame.stream)));
        }
        let what = match frame.kind {
            Kind::TreeStart => {
                let TreeStart { area } = from_meta(frame.meta)?;
                if !self.areas.insert(area.clone()) {
                    return Err(violation(format!("second tree {area}")));
                }
                let target = match self.handler.tree(&area).map_err(Error::Refused)? {
                    TreeTarget::Spool(path) => TreeWriter::Spool(create(&path)?),
                    TreeTarget::Apply(dir) => {
                        let applier = Applier::new(&dir, area.kinds())
                            .map_err(|source| Error::Tree { area: area.to_string(), source })?;
                        TreeWriter::Apply(Box::new(applier))
                    }
                };
                What::Tree { area, target }
            }
            Kind::ImageStart => {
                let ImageStart { container, name } = from_meta(frame.meta)?;
                self.expects(&container)?;
                if !is_allowed_name(&name) {
                    return Err(Error::ImageName(name.chars().take(128).collect()));
                }
                let dir = self.handler.images_dir(&container).map_err(Error::Refused)?;
                let file = create(&dir.join(&name))?;
                What::Image { container, name, file }
            }
            _ => {
                let PagesStart { container } = from_meta(frame.meta)?;
                self.expects(&container)?;
                if !self.paged.insert(container.clone()) {
                    return Err(violation(format!("second page stream of {container:?}")));
                }
                let dir = self.handler.images_dir(&container).map_err(Error::Refused)?;
                What::Pages { container, images: PageImages::new(dir) }
            }
        };
        let mut count = ItemCount::default();
        count.frame(frame.meta, &[]);
        self.open.insert(frame.stream, Item { count, pages: 0, what });
        Ok(())
    }

    fn content(&mut self, frame: &Incoming<'_>) -> Result<()> {
        let item = self
            .open
            .get_mut(&frame.stream)
            .ok_or_else(|| violation(format!("stream {} is not open", frame.stream)))?;
        item.count.frame(frame.meta, frame.data);
        match (&mut item.what, frame.kind) {
            (What::Tree { area, target }, Kind::TreeData) => match target {
                TreeWriter::Spool(file) => file
                    .write_all(frame.data)
                    .map_err(|source| Error::File { what: format!("tree {area}"), source }),
                TreeWriter::Apply(applier) => applier
                    .push(frame.data)
                    .map_err(|source| Error::Tree { area: area.to_string(), source }),
            },
            (What::Image { name, file, .. }, Kind::ImageData) => file
                .write_all(frame.data)
                .map_err(|source| Error::File { what: name.clone(), source }),
            (What::Pages { images, .. }, Kind::PagesOpen) => {
                let raw = frame.meta.try_into().map(u64::from_le_bytes);
                let dst = raw
                    .ok()
                    .and_then(DstId::from_raw)
                    .ok_or_else(|| violation("unknown page destination"))?;
                images
                    .open(dst)
                    .map_err(|source| Error::File { what: format!("pages of {dst}"), source })
            }
            (What::Pages { images, .. }, Kind::Pages) => {
                let pages = decode(frame.meta, frame.data, images)?;
                item.pages += pages;
                self.progress.add_pages(pages);
                Ok(())
            }
            (what, kind) => Err(violation(format!("{kind:?} for {}", what.describe()))),
        }
    }

    fn end(&mut self, frame: &Incoming<'_>) -> Result<()> {
        let Item { count, pages, mut what } = self
            .open
            .remove(&frame.stream)
            .ok_or_else(|| violation(format!("stream {} is not open", frame.stream)))?;
        let sent: ItemEnd = from_meta(frame.meta)?;
        let received = count.end();
        if sent != received {
            return Err(Error::Totals {
                what: what.describe(),
                sent: format!("{} bytes, {}", sent.bytes, sent.digest),
                received: format!("{} bytes, {}", received.bytes, received.digest),
            });
        }
        if let Some(container) = what.container() {
            self.containers.entry(container.into()).or_default().add(&received, pages);
        }
        self.totals.add(&received, pages);
        match (&mut what, frame.kind) {
            (What::Tree { area, target }, Kind::TreeEnd) => {
                if let TreeWriter::Apply(applier) = target {
                    applier
                        .finish()
                        .map_err(|source| Error::Tree { area: area.to_string(), source })?;
                }
                self.handler.tree_done(area).map_err(Error::Refused)
            }
            (What::Image { .. }, Kind::ImageEnd) => Ok(()),
            (What::Pages { images, container }, Kind::PagesEnd) => images
                .close()
                .map_err(|source| Error::File { what: format!("pages of {container}"), source }),
            (what, kind) => Err(violation(format!("{kind:?} for {}", what.describe()))),
        }
    }

    fn container_done(&mut self, message: ContainerDone) -> Result<()> {
        let ContainerDone { container, totals: sent } = message;
        self.expects(&container)?;
        if self.open.values().any(|item| item.what.container() == Some(&*container)) {
            return Err(violation(format!("container {container:?} done with open streams")));
        }
        let received = self.containers.get(&container).copied().unwrap_or_default();
        compare(&format!("container {container}"), &sent, &received)?;
        self.handler.container_done(&container, &received).map_err(Error::Refused)?;
        self.done.insert(container);
        Ok(())
    }

    fn all_done(&mut self, message: AllDone) -> Result<Totals> {
        if let Some(item) = self.open.values().next() {
            return Err(violation(format!("done before the end of {}", item.what.describe())));
        }
        let missing =
            self.hello.iter().flat_map(|h| &h.containers).find(|c| !self.done.contains(*c));
        if let Some(container) = missing {
            return Err(violation(format!("done without container {container:?}")));
        }
        compare("the transfer", &message.totals, &self.totals)?;
        self.handler.all_done(&self.totals).map_err(Error::Refused)?;
        Ok(self.totals)
    }
}

fn compare(what: &str, sent: &Totals, received: &Totals) -> Result<()> {
    if sent == received {
        return Ok(());
    }
    Err(Error::Totals { what: what.into(), sent: sent.to_string(), received: received.to_string() })
}
