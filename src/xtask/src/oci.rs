//! Writes OCI image archives from directories.
//!
//! Decides the archive's shape: one manifest, one uncompressed tar layer per directory, the same
//! bytes for the same input (sorted entries, no timestamps). It does not decide what is in an
//! image, and it needs no container engine.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::{self, BufWriter, Read, Seek, Write},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const PATH_ENV: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What an image says about how it is run.
#[derive(Debug, Default, Clone)]
pub struct Image {
    /// Full reference, for example `localhost/pause:1`.
    pub name: String,
    /// Program and leading arguments.
    pub entrypoint: Vec<String>,
    /// Arguments that a pod's `args` replaces.
    pub cmd: Vec<String>,
    /// `NAME=value`; a usual `PATH` is added where none is given.
    pub env: Vec<String>,
    /// `UID`, `UID:GID` or a name of the image's passwd file; root without it.
    pub user: Option<String>,
    /// Working directory; `/` without it.
    pub working_dir: Option<String>,
    /// Labels of the image.
    pub labels: BTreeMap<String, String>,
}

/// Writes `image` with one layer per directory of `layers` (lowest first) to `archive`, and returns
/// the digest (`sha256:…`) of its manifest. The file appears whole or not at all.
pub fn write_archive(archive: &Path, image: &Image, layers: &[&Path]) -> Result<String> {
    let parent = archive.parent().context("an archive needs a directory")?;
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    let partial = with_suffix(archive, ".partial");
    let layer_files: Vec<PathBuf> =
        (0..layers.len()).map(|i| with_suffix(archive, &format!(".layer-{i}"))).collect();
    let result = write_partial(&partial, image, layers, &layer_files)
        .and_then(|digest| fs::rename(&partial, archive).map(|()| digest).map_err(Into::into));
    for file in layer_files.iter().chain([&partial]) {
        // Left over only after a failure, or never written.
        let _ = fs::remove_file(file);
    }
    result.with_context(|| format!("writing the image archive {}", archive.display()))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn write_partial(
    partial: &Path,
    image: &Image,
    layers: &[&Path],
    layer_files: &[PathBuf],
) -> Result<String> {
    let mut blobs = Vec::new();
    for (directory, file) in layers.iter().zip(layer_files) {
        blobs.push(
            write_layer(file, directory)
                .with_context(|| format!("making a layer of {}", directory.display()))?,
        );
    }
    let diff_ids: Vec<&str> = blobs.iter().map(|blob| blob.digest.as_str()).collect();
    let config = serde_json::to_vec(&config(image, &diff_ids))?;
    let layer_list: Vec<Value> = blobs
        .iter()
        .map(|blob| json!({"mediaType": LAYER_TYPE, "digest": blob.digest, "size": blob.size}))
        .collect();
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": digest(&config), "size": config.len()},
        "layers": layer_list,
    }))?;
    let manifest_digest = digest(&manifest);
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": MANIFEST_TYPE,
            "digest": manifest_digest,
            "size": manifest.len(),
            "annotations": {
                "io.containerd.image.name": image.name,
                "org.opencontainers.image.ref.name": tag(&image.name),
            },
        }],
    }))?;

    let mut out = tar::Builder::new(BufWriter::new(File::create(partial)?));
    append_bytes(&mut out, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append_bytes(&mut out, "index.json", &index)?;
    append_bytes(&mut out, &blob_path(&manifest_digest), &manifest)?;
    append_bytes(&mut out, &blob_path(&digest(&config)), &config)?;
    let mut seen: Vec<&str> = Vec::new();
    for (blob, file) in blobs.iter().zip(layer_files) {
        if !seen.contains(&blob.digest.as_str()) {
            append(&mut out, &blob_path(&blob.digest), blob.size, File::open(file)?)?;
            seen.push(&blob.digest);
        }
    }
    out.into_inner()?.into_inner().map_err(|error| error.into_error())?.sync_all()?;
    Ok(manifest_digest)
}

fn config(image: &Image, diff_ids: &[&str]) -> Value {
    let mut env = image.env.clone();
    if !env.iter().any(|variable| variable.starts_with("PATH=")) {
        env.insert(0, PATH_ENV.to_owned());
    }
    let mut run = json!({"Env": env});
    let mut set = |key: &str, value: Value, wanted: bool| {
        if wanted {
            run[key] = value;
        }
    };
    set("Entrypoint", json!(image.entrypoint), !image.entrypoint.is_empty());
    set("Cmd", json!(image.cmd), !image.cmd.is_empty());
    set("User", json!(image.user), image.user.is_some());
    set("WorkingDir", json!(image.working_dir), image.working_dir.is_some());
    set("Labels", json!(image.labels), !image.labels.is_empty());
    json!({
        "architecture": architecture(std::env::consts::ARCH),
        "os": "linux",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
}

fn architecture(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn tag(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((_, tag)) if !tag.contains('/') => tag,
        _ => "latest",
    }
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

/// `sha256:…` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn append_bytes<W: Write>(out: &mut tar::Builder<W>, path: &str, bytes: &[u8]) -> io::Result<()> {
    append(out, path, bytes.len() as u64, bytes)
}

fn append<W: Write, R: Read>(
    out: &mut tar::Builder<W>,
    path: &str,
    size: u64,
    data: R,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(size);
    out.append_data(&mut header, path, data)
}

struct Blob {
    digest: String,
    size: u64,
}

struct Hashing<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn write_layer(file: &Path, directory: &Path) -> Result<Blob> {
    let sink = Hashing { inner: BufWriter::new(File::create(file)?), hash: Sha256::new(), size: 0 };
    let mut layer = tar::Builder::new(sink);
    add_directory(&mut layer, directory, Path::new(""), &mut HashMap::new())?;
    let mut sink = layer.into_inner()?;
    sink.flush()?;
    Ok(Blob { digest: format!("sha256:{}", hex(&sink.hash.finalize())), size: sink.size })
}

/// Files with several names by (device, inode), so that hard links stay hard links.
type Links = HashMap<(u64, u64), PathBuf>;

fn add_directory<W: Write>(
    layer: &mut tar::Builder<W>,
    root: &Path,
    relative: &Path,
    links: &mut Links,
) -> Result<()> {
    let mut names: Vec<_> = fs::read_dir(root.join(relative))?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<io::Result<_>>()?;
    names.sort();
    for name in names {
        let path = relative.join(name);
        let metadata = fs::symlink_metadata(root.join(&path))?;
        add_entry(layer, root, &path, &metadata, links)
            .with_context(|| format!("adding {}", path.display()))?;
        if metadata.is_dir() {
            add_directory(layer, root, &path, links)?;
        }
    }
    Ok(())
}

fn add_entry<W: Write>(
    layer: &mut tar::Builder<W>,
    root: &Path,
    path: &Path,
    metadata: &fs::Metadata,
    links: &mut Links,
) -> Result<()> {
    let kind = metadata.file_type();
    let mut header = tar::Header::new_gnu();
    header.set_mode(metadata.permissions().mode() & 0o7777);
    header.set_uid(metadata.uid().into());
    header.set_gid(metadata.gid().into());
    header.set_mtime(0);
    header.set_size(0);
    if kind.is_dir() {
        header.set_entry_type(tar::EntryType::Directory);
        layer.append_data(&mut header, path, io::empty())?;
    } else if kind.is_symlink() {
        header.set_entry_type(tar::EntryType::Symlink);
        layer.append_link(&mut header, path, fs::read_link(root.join(path))?)?;
    } else if kind.is_file() {
        let identity = (metadata.dev(), metadata.ino());
        if let Some(first) = links.get(&identity) {
            header.set_entry_type(tar::EntryType::Link);
            layer.append_link(&mut header, path, first)?;
            return Ok(());
        }
        if metadata.nlink() > 1 {
            links.insert(identity, path.to_owned());
        }
        if let Some(capability) = file_capability(&root.join(path))? {
            layer.append_pax_extensions([(
                "SCHILY.xattr.security.capability",
                capability.as_slice(),
            )])?;
        }
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(metadata.len());
        layer.append_data(&mut header, path, File::open(root.join(path))?)?;
    } else if kind.is_char_device() || kind.is_block_device() || kind.is_socket() {
        // The runtime supplies /dev, and a socket without its process means nothing.
    } else {
        bail!("neither a file, a directory nor a symbolic link");
    }
    Ok(())
}

fn file_capability(path: &Path) -> Result<Option<Vec<u8>>> {
    let mut value = vec![0; 64];
    match rustix::fs::lgetxattr(path, "security.capability", value.as_mut_slice()) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error).context("reading the file's capabilities"),
    }
}

/// One image of an archive's index: the name that it gets in a container runtime, if the archive
/// gives one, and the digest of its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// `io.containerd.image.name`, else `org.opencontainers.image.ref.name`.
    pub name: Option<String>,
    /// `sha256:…`.
    pub digest: String,
}

/// Reads which images an OCI archive holds.
pub fn read_index(archive: &Path) -> Result<Vec<IndexEntry>> {
    let mut file = File::open(archive).with_context(|| format!("opening {}", archive.display()))?;
    file.rewind()?;
    let mut tar = tar::Archive::new(file);
    for entry in tar.entries_with_seek()? {
        let mut entry = entry.map_err(|_| {
            anyhow!("{} is not an OCI image archive: not even tar", archive.display())
        })?;
        let path = entry.path()?.into_owned();
        if path == Path::new("index.json") || path == Path::new("./index.json") {
            let mut text = String::new();
            entry.read_to_string(&mut text)?;
            return parse_index(&text)
                .with_context(|| format!("reading index.json of {}", archive.display()));
        }
    }
    bail!("{} is not an OCI image archive: it has no index.json", archive.display())
}

fn parse_index(text: &str) -> Result<Vec<IndexEntry>> {
    let index: Value = serde_json::from_str(text)?;
    let manifests = index["manifests"].as_array().context("no list of manifests")?;
    if manifests.is_empty() {
        bail!("the archive holds no image");
    }
    manifests
        .iter()
        .map(|manifest| {
            let annotation =
                |key: &str| manifest["annotations"][key].as_str().map(ToOwned::to_owned);
            Ok(IndexEntry {
                name: annotation("io.containerd.image.name")
                    .or_else(|| annotation("org.opencontainers.image.ref.name")),
                digest: manifest["digest"].as_str().context("a manifest without digest")?.into(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rstest::rstest;

    use super::*;

    fn sample(directory: &Path) {
        fs::create_dir(directory.join("bin")).unwrap();
        fs::write(directory.join("bin/app"), "program").unwrap();
        fs::set_permissions(directory.join("bin/app"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::hard_link(directory.join("bin/app"), directory.join("bin/same")).unwrap();
        symlink("app", directory.join("bin/link")).unwrap();
        let deep = directory.join("d".repeat(90)).join("e".repeat(90));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), "far down").unwrap();
    }

    fn image() -> Image {
        Image {
            name: "localhost/app:1".into(),
            entrypoint: vec!["/bin/app".into()],
            user: Some("1000".into()),
            ..Image::default()
        }
    }

    fn blob(archive: &Path, digest: &str) -> Vec<u8> {
        let mut tar = tar::Archive::new(File::open(archive).unwrap());
        let wanted = blob_path(digest);
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            if entry.path().unwrap() == Path::new(&wanted) {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).unwrap();
                return bytes;
            }
        }
        panic!("no blob {wanted}");
    }

    #[test]
    fn the_same_directory_gives_the_same_archive() {
        let work = tempfile::tempdir().unwrap();
        let (one, two) = (work.path().join("one"), work.path().join("two"));
        for directory in [&one, &two] {
            fs::create_dir(directory).unwrap();
            sample(directory);
        }
        let (first, second) = (work.path().join("1.tar"), work.path().join("2.tar"));
        write_archive(&first, &image(), &[&one]).unwrap();
        write_archive(&second, &image(), &[&two]).unwrap();
        assert_eq!(fs::read(first).unwrap(), fs::read(second).unwrap());
        assert_eq!(fs::read_dir(work.path()).unwrap().count(), 4, "no temporary file is left");
    }

    #[test]
    fn an_archive_holds_what_its_digests_say_and_layers_keep_links_and_modes() {
        let work = tempfile::tempdir().unwrap();
        let root = work.path().join("root");
        fs::create_dir(&root).unwrap();
        sample(&root);
        let archive = work.path().join("image.tar");
        let manifest_digest = write_archive(&archive, &image(), &[&root]).unwrap();

        let index = read_index(&archive).unwrap();
        assert_eq!(
            index,
            [IndexEntry { name: Some("localhost/app:1".into()), digest: manifest_digest.clone() }]
        );
        let manifest = blob(&archive, &manifest_digest);
        assert_eq!(digest(&manifest), manifest_digest);
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        let config = blob(&archive, manifest["config"]["digest"].as_str().unwrap());
        let config: Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["config"]["User"], "1000");
        assert_eq!(config["config"]["Env"][0], PATH_ENV);
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);

        let layer = blob(&archive, manifest["layers"][0]["digest"].as_str().unwrap());
        let mut kinds = BTreeMap::new();
        for entry in tar::Archive::new(layer.as_slice()).entries().unwrap() {
            let entry = entry.unwrap();
            let mode = entry.header().mode().unwrap();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            kinds.insert(path, (entry.header().entry_type(), mode));
        }
        assert_eq!(kinds["bin/app"], (tar::EntryType::Regular, 0o755));
        assert_eq!(kinds["bin/same"].0, tar::EntryType::Link);
        assert_eq!(kinds["bin/link"].0, tar::EntryType::Symlink);
        assert!(kinds.keys().any(|path| path.ends_with("e/file")), "long paths are kept");
    }

    #[rstest]
    #[case("localhost/app:1", "1")]
    #[case("localhost:5000/app", "latest")]
    #[case("app", "latest")]
    fn the_tag_is_what_follows_the_last_colon_of_the_name(#[case] name: &str, #[case] want: &str) {
        assert_eq!(tag(name), want);
    }

    #[rstest]
    #[case("{}", "no list of manifests")]
    #[case(r#"{"manifests":[]}"#, "holds no image")]
    #[case(r#"{"manifests":[{}]}"#, "without digest")]
    fn a_broken_index_is_refused(#[case] text: &str, #[case] message: &str) {
        assert!(parse_index(text).unwrap_err().to_string().contains(message));
    }
}
