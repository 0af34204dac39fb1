//! The pause container's image: one static program that reaps orphans.

use std::{fs, path::PathBuf};

use anyhow::Result;

use super::{cmd, compile, layout, short_digest};
use crate::oci::{Image, write_archive};

/// The image's name in containerd's configuration.
pub const REFERENCE: &str = "localhost/pause:1";
const SOURCE: &str = include_str!("../../../sandbox-assets/pause.c");

/// What the archive is made from.
pub fn key() -> String {
    format!("pause {}", short_digest(&[REFERENCE, SOURCE]))
}

/// Makes the archive if it is missing.
pub fn ensure() -> Result<PathBuf> {
    let archive = layout::cache(&format!("{}.tar", key().replace(' ', "-")));
    if archive.exists() {
        return Ok(archive);
    }
    cmd::step("made the pause image", || {
        let directory = archive.with_extension("partial");
        fs::create_dir_all(&directory)?;
        compile(SOURCE, &directory.join("pause"), &["-static", "-s"])?;
        let image = Image {
            name: REFERENCE.into(),
            entrypoint: vec!["/pause".into()],
            user: Some("65535:65535".into()),
            ..Image::default()
        };
        write_archive(&archive, &image, &[&directory])?;
        fs::remove_dir_all(&directory)?;
        Ok(archive)
    })
}
