//! The source's own copy of the state, for a sequential hand-over: what goes to the target is written
//! here as well, in the same form, so that the pod can be made again of either.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use transship_criu::pagemap::PageImages;
use transship_criu::pages::{DstId, PageRun, PageSink};
use transship_host::files;
use transship_host::paths::MigrationDir;
use transship_transport::Area;

use crate::areas;

/// Written even where cgroups are ignored; the runtime makes its own.
const NOT_SENT: &str = "cgroup.img";

/// Where it lies, until the agent moves it to the pod that is made again.
#[derive(Debug, Clone)]
pub struct Keep(PathBuf);

impl Keep {
    /// An empty one. What an earlier try left is removed.
    pub fn new(dir: &MigrationDir) -> Result<Self> {
        let keep = Keep(dir.kept());
        files::remove_tree(&keep.0)?;
        files::make_dir(&keep.0.join("trees"))?;
        Ok(keep)
    }

    fn images(&self, container: &str) -> PathBuf {
        self.0.join("images").join(container)
    }

    /// A sink that writes the pages here and passes them on.
    pub fn pages<S>(&self, container: &str, remote: S) -> Result<Tee<S>> {
        let dir = self.images(container);
        files::make_dir(&dir)?;
        Ok(Tee { local: PageImages::new(dir), remote })
    }

    /// The small images of a dump, those that are sent. Linked, not copied: CRIU is done with them,
    /// and nobody here writes them again.
    pub fn link_images(&self, container: &str, images: &Path) -> Result<()> {
        let dir = self.images(container);
        for name in files::list(images)?.iter().filter(|name| *name != NOT_SENT) {
            std::fs::hard_link(images.join(name), dir.join(name))
                .with_context(|| format!("image {name} cannot be kept"))?;
        }
        Ok(())
    }

    /// A writer for a tree's own copy.
    pub fn tree(&self, area: &Area) -> Result<File> {
        File::create(self.place(area)).with_context(|| format!("{area} cannot be kept"))
    }

    /// Removes a tree's copy, or what there is of it.
    pub fn discard(&self, area: &Area) -> Result<()> {
        files::remove_durably(&self.place(area))?;
        Ok(())
    }

    fn place(&self, area: &Area) -> PathBuf {
        self.0.join("trees").join(areas::file_name(area))
    }
}

/// Writes the same to two places.
pub struct Both<'a> {
    /// The one whose errors are told first.
    pub near: Option<&'a mut File>,
    /// The other.
    pub far: &'a mut dyn Write,
}

impl Write for Both<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(near) = &mut self.near {
            near.write_all(bytes)?;
        }
        self.far.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.far.flush()
    }
}

/// Pages go here and on.
pub struct Tee<S> {
    local: PageImages,
    remote: S,
}

impl<S: PageSink> PageSink for Tee<S> {
    fn open(&mut self, dst: DstId) -> io::Result<bool> {
        self.local.open(dst)?;
        self.remote.open(dst)
    }

    fn hole(&mut self, run: PageRun) -> io::Result<()> {
        self.local.run(run)?;
        self.remote.hole(run)
    }

    fn pages(&mut self, run: PageRun, data: &mut dyn Read) -> io::Result<()> {
        self.local.run(run)?;
        self.remote.pages(run, &mut Copying { data, local: &mut self.local })
    }

    fn has_parent(&mut self, dst: DstId) -> io::Result<bool> {
        self.remote.has_parent(dst)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.local.close()?;
        self.remote.finish()
    }
}

struct Copying<'a> {
    data: &'a mut dyn Read,
    local: &'a mut PageImages,
}

impl Read for Copying<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.data.read(buffer)?;
        self.local.data(&buffer[..length])?;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use transship_criu::pages::{PageFlags, PageKind};

    use super::*;

    /// Keeps what it is given.
    #[derive(Default)]
    struct Paper(Vec<u8>);

    impl PageSink for Paper {
        fn open(&mut self, _: DstId) -> io::Result<bool> {
            Ok(false)
        }
        fn hole(&mut self, _: PageRun) -> io::Result<()> {
            Ok(())
        }
        fn pages(&mut self, _: PageRun, data: &mut dyn Read) -> io::Result<()> {
            data.read_to_end(&mut self.0).map(drop)
        }
        fn finish(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn both_copies_are_the_same() {
        let root = tempfile::tempdir().unwrap();
        let dir = MigrationDir::at(root.path());
        let keep = Keep::new(&dir).unwrap();
        let mut tee = keep.pages("web", Paper::default()).unwrap();
        let dst = DstId { kind: PageKind::Process, id: 1 };
        tee.open(dst).unwrap();
        let run = PageRun::checked(0x1000, 2, PageFlags::PRESENT).unwrap();
        let bytes: Vec<u8> = (0..8192).map(|i| (i % 251) as u8).collect();
        tee.pages(run, &mut bytes.as_slice()).unwrap();
        tee.finish().unwrap();
        assert_eq!(tee.remote.0, bytes);
        let images = dir.kept().join("images/web");
        let page = transship_criu::pagemap::read_page(&images, dst, 0x2000).unwrap().unwrap();
        assert_eq!(page, &bytes[4096..]);
    }

    #[test]
    fn a_tree_is_written_twice_and_an_image_is_linked() {
        let root = tempfile::tempdir().unwrap();
        let dir = MigrationDir::at(root.path());
        let keep = Keep::new(&dir).unwrap();
        let area = Area::EmptyDir("data".into());
        let (mut near, mut far) = (keep.tree(&area).unwrap(), Vec::new());
        Both { near: Some(&mut near), far: &mut far }.write_all(b"tree").unwrap();
        let file = dir.kept().join("trees").join(areas::file_name(&area));
        assert_eq!((std::fs::read(file).unwrap(), far), (b"tree".to_vec(), b"tree".to_vec()));
        keep.pages("web", Paper::default()).unwrap();
        let images = root.path().join("images/web");
        std::fs::create_dir_all(&images).unwrap();
        std::fs::write(images.join("files.img"), "x").unwrap();
        std::fs::write(images.join(NOT_SENT), "x").unwrap();
        keep.link_images("web", &images).unwrap();
        assert!(dir.kept().join("images/web/files.img").exists());
        assert!(!dir.kept().join("images/web").join(NOT_SENT).exists());
    }
}
