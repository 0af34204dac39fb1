//! `mountinfo`: finding the mount at a path, and the writable layer of an overlay.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// One line of `mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted, unescaped.
    pub point: PathBuf,
    /// Which directory of the file system is its root.
    pub root: PathBuf,
    /// `overlay`, `tmpfs`, …
    pub fs_type: String,
    /// Device number, `major:minor`.
    pub device: String,
    /// Options of the super block, unescaped.
    pub super_options: String,
    /// Options of this mount, such as `rw,nosuid`.
    pub options: String,
}

/// All mounts of a `mountinfo` file, in its order. Lines that cannot be read are left out.
pub fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(line).collect()
}

fn line(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(2);
    let device = left.next()?.to_owned();
    let root = unescape(left.next()?).into();
    let point = unescape(left.next()?).into();
    let options = left.next()?.to_owned();
    let mut right = right.split(' ');
    let fs_type = right.next()?.to_owned();
    let super_options = unescape(right.nth(1)?);
    Some(Mount { point, root, fs_type, device, super_options, options })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 4).filter(|digits| {
            bytes[at] == b'\\' && digits.iter().all(|digit| (b'0'..=b'7').contains(digit))
        });
        match digits {
            Some(digits) => {
                let value =
                    digits.iter().fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                out.push(value as u8);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The `upperdir` of an overlay's options. A backslash there quotes the next character (the
/// kernel's own quoting of commas and colons).
pub fn upper_dir(super_options: &str) -> Option<PathBuf> {
    let mut option = String::new();
    let mut options = Vec::new();
    let mut characters = super_options.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => option.extend(characters.next()),
            ',' => options.push(std::mem::take(&mut option)),
            other => option.push(other),
        }
    }
    options.push(option);
    options.iter().find_map(|option| option.strip_prefix("upperdir=")).map(PathBuf::from)
}

/// The writable layer of the overlay mounted at `point`, by the `mountinfo` file given.
pub fn upper_of(mountinfo: &Path, point: &Path) -> Result<PathBuf> {
    let malformed = |message: String| Error::Malformed { path: mountinfo.to_path_buf(), message };
    let mounts = parse(&crate::read(mountinfo)?);
    // The last mount at a path hides those before it.
    let mount = mounts
        .iter()
        .rev()
        .find(|mount| mount.point == point)
        .ok_or_else(|| malformed(format!("nothing is mounted at {}", point.display())))?;
    if mount.fs_type != "overlay" {
        return Err(malformed(format!(
            "{} is {}, and only overlay root file systems can be moved",
            point.display(),
            mount.fs_type
        )));
    }
    upper_dir(&mount.super_options)
        .ok_or_else(|| malformed(format!("the overlay at {} has no upperdir", point.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw
90 22 0:50 / /run/task/c\\0401/rootfs rw,relatime shared:9 - overlay overlay rw,lowerdir=/a:/b,upperdir=/var/lib/snap/7/fs,workdir=/var/lib/snap/7/work
91 22 0:51 / /dev/shm rw,nosuid - tmpfs shm rw,size=65536k
broken line
";

    #[test]
    fn mounts_are_read_with_their_escapes_and_without_broken_lines() {
        let mounts = parse(INFO);
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[1].point, Path::new("/run/task/c 1/rootfs"));
        assert_eq!(mounts[2].fs_type, "tmpfs");
        assert_eq!(mounts[2].device, "0:51");
    }

    #[test]
    fn the_writable_layer_is_found_by_mount_point() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), INFO).unwrap();
        let upper = upper_of(file.path(), Path::new("/run/task/c 1/rootfs")).unwrap();
        assert_eq!(upper, Path::new("/var/lib/snap/7/fs"));
        let error = upper_of(file.path(), Path::new("/dev/shm")).unwrap_err().to_string();
        assert!(error.contains("tmpfs"), "{error}");
        assert!(upper_of(file.path(), Path::new("/nowhere")).is_err());
    }

    #[test]
    fn quoted_commas_do_not_end_an_option() {
        for (options, upper) in [
            ("rw,upperdir=/a\\,b,workdir=/w", Some("/a,b")),
            ("rw,lowerdir=/x,upperdir=/u", Some("/u")),
            ("rw,lowerdir=/upperdir=/u", None),
        ] {
            assert_eq!(upper_dir(options), upper.map(PathBuf::from), "{options}");
        }
    }
}
