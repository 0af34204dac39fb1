//! containerd's configuration: which text makes the wrapper its default runtime.
//!
//! Our settings are in a file of their own, which the user's configuration imports; into that file goes one
//! line at most. containerd 2 merges what is imported into what is there. containerd 1 replaces a plugin's
//! whole section by the imported one, so there the drop-in repeats the user's section.

use std::path::Path;

use toml_edit::{DocumentMut, Item, Table, value};

use crate::bundle::WRAPPER;

const HEADER: &str = "# Written by Transship, removed with it. Changes here are overwritten.\n";
const LINE_MARK: &str = " # added by Transship";

/// What the two files should hold.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The user's configuration, with an import of the drop-in.
    pub main: String,
    /// The drop-in.
    pub drop_in: String,
    /// The runtime that the user had named instead of `runc`.
    pub former_binary: Option<String>,
}

/// The wanted texts, from the present configuration (`None`: there is no file) and the drop-in's path.
pub fn wanted(main: Option<&str>, drop_in: &Path, major: u32) -> Result<Wanted, String> {
    let Some(main) = main else {
        // containerd without a configuration has its defaults, and from 2.2 on imports this directory; with
        // a configuration it imports only what that says.
        let version = if major == 1 { 2 } else { 3 };
        let pattern = drop_in.with_file_name("*.toml");
        return Ok(Wanted {
            main: format!(
                "{HEADER}version = {version}\nimports = [\"{}\"]{LINE_MARK}\n",
                pattern.display()
            ),
            drop_in: drop_in_text(version, major, "runc", None)?,
            former_binary: None,
        });
    };
    let document: DocumentMut = main.parse().map_err(|error| format!("is not TOML: {error}"))?;
    let version = document.get("version").and_then(Item::as_integer);
    let version = match (version, major) {
        (Some(version @ 2..), _) => version,
        // containerd 2 migrates each file by itself.
        (_, 2..) => 2,
        _ => {
            return Err("has the old format; write `version = 2` and the plugins' full names, or \
                         generate it anew with `containerd config default`"
                .into());
        }
    };
    let section = document.get("plugins").and_then(|plugins| plugins.get(plugin(version)));
    let containerd = section.and_then(|section| section.get("containerd"));
    let handler = containerd
        .and_then(|c| c.get("default_runtime_name"))
        .and_then(Item::as_str)
        .filter(|name| !name.is_empty())
        .unwrap_or("runc");
    let runtime = containerd.and_then(|c| c.get("runtimes")).and_then(|r| r.get(handler));
    let kind =
        runtime.and_then(|r| r.get("runtime_type")).and_then(Item::as_str).unwrap_or_default();
    let is_runc = kind == RUNTIME_TYPE || (kind.is_empty() && handler == "runc");
    if !is_runc {
        return Err(format!(
            "its default runtime {handler:?} is {kind:?}; Transship needs one of type {RUNTIME_TYPE:?}"
        ));
    }
    let former_binary = runtime
        .and_then(|r| r.get("options"))
        .and_then(|o| o.get("BinaryName"))
        .and_then(Item::as_str)
        .filter(|name| !name.is_empty() && *name != WRAPPER)
        .map(str::to_owned);
    Ok(Wanted {
        main: with_import(main, &document, drop_in)?,
        drop_in: drop_in_text(version, major, handler, section)?,
        former_binary,
    })
}

const RUNTIME_TYPE: &str = "io.containerd.runc.v2";

/// The plugin whose section names the runtimes.
fn plugin(version: i64) -> &'static str {
    if version >= 3 { "io.containerd.cri.v1.runtime" } else { "io.containerd.grpc.v1.cri" }
}

fn drop_in_text(
    version: i64,
    major: u32,
    handler: &str,
    section: Option<&Item>,
) -> Result<String, String> {
    let mut document = DocumentMut::new();
    document["version"] = value(version);
    let mut settings = match section {
        Some(section) if major == 1 => section
            .clone()
            .into_table()
            .map_err(|_| format!("its section {} is not a table", plugin(version)))?,
        _ => {
            let mut settings = Table::new();
            settings.set_implicit(true);
            settings
        }
    };
    let mut table = &mut settings;
    for key in ["containerd", "runtimes", handler] {
        table = subtable(table, key)?;
    }
    if major == 1 {
        table["runtime_type"] = value(RUNTIME_TYPE);
    }
    subtable(table, "options")?["BinaryName"] = value(WRAPPER);
    let mut plugins = Table::new();
    plugins.set_implicit(true);
    settings.set_position(None);
    plugins.insert(plugin(version), Item::Table(settings));
    document.insert("plugins", Item::Table(plugins));
    Ok(format!("{HEADER}{document}"))
}

/// A table within a table, made if it is missing and turned into the long form if it is inline.
fn subtable<'a>(table: &'a mut Table, key: &str) -> Result<&'a mut Table, String> {
    let wrong = || format!("its setting {key} is not a table");
    let present = table.remove(key);
    let inner = match present {
        None => {
            let mut inner = Table::new();
            inner.set_implicit(true);
            inner
        }
        Some(item) => item.into_table().map_err(|_| wrong())?,
    };
    table.insert(key, Item::Table(inner));
    table.get_mut(key).and_then(Item::as_table_mut).ok_or_else(wrong)
}

/// The user's text with an import of the drop-in, unless one covers it.
fn with_import(text: &str, document: &DocumentMut, drop_in: &Path) -> Result<String, String> {
    let path = drop_in.to_string_lossy();
    let Some(imports) = document.get("imports") else {
        let line = format!("imports = [\"{path}\"]{LINE_MARK}\n");
        let at = end_of_version_line(text);
        let mut with = text.to_owned();
        let missing_newline = at > 0 && !with[..at].ends_with('\n');
        with.insert_str(at, &if missing_newline { format!("\n{line}") } else { line });
        return Ok(with);
    };
    let imports = imports.as_array().ok_or("its `imports` is not a list")?;
    if imports.iter().filter_map(|i| i.as_str()).any(|pattern| covers(pattern, &path)) {
        return Ok(text.to_owned());
    }
    let mut document = document.clone();
    if let Some(imports) = document["imports"].as_array_mut() {
        imports.push(path.into_owned());
    }
    Ok(document.to_string())
}

/// Just behind a top-level `version` line, or the beginning. A key before the first table is at top level.
fn end_of_version_line(text: &str) -> usize {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim_start();
        if trimmed.starts_with('[') {
            break;
        }
        at += line.len();
        let key = trimmed.split('=').next().unwrap_or_default().trim();
        if key == "version" {
            return at;
        }
    }
    0
}

/// Whether an import pattern includes a file: equal, or one `*` in the file name.
fn covers(pattern: &str, path: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == path,
        Some((before, after)) => {
            path.len() >= before.len() + after.len()
                && path.starts_with(before)
                && path.ends_with(after)
                && !path[before.len()..path.len() - after.len()].contains('/')
        }
    }
}

/// The user's text without our import; `None` if it has none, and an empty text if the whole file is ours.
pub fn without_import(text: &str, drop_in: &Path) -> Result<Option<String>, String> {
    if let Some(rest) = text.strip_prefix(HEADER)
        && rest.lines().all(|line| {
            line.starts_with("version = ") || line.ends_with(LINE_MARK) || line.trim().is_empty()
        })
    {
        return Ok(Some(String::new()));
    }
    if text.lines().any(|line| line.ends_with(LINE_MARK)) {
        let rest = text
            .split_inclusive('\n')
            .filter(|line| !line.trim_end_matches('\n').ends_with(LINE_MARK))
            .collect();
        return Ok(Some(rest));
    }
    let mut document: DocumentMut =
        text.parse().map_err(|error| format!("is not TOML: {error}"))?;
    let path = drop_in.to_string_lossy();
    let Some(imports) = document.get_mut("imports").and_then(Item::as_array_mut) else {
        return Ok(None);
    };
    let Some(at) = imports.iter().position(|i| i.as_str() == Some(&*path)) else {
        return Ok(None);
    };
    imports.remove(at);
    Ok(Some(document.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DROP_IN: &str = "/etc/containerd/conf.d/transship.toml";

    fn want(main: &str, major: u32) -> Wanted {
        wanted(Some(main), Path::new(DROP_IN), major).unwrap()
    }

    fn parsed(text: &str) -> DocumentMut {
        text.parse().unwrap()
    }

    fn binary(text: &str, plugin: &str, handler: &str) -> String {
        let document = parsed(text);
        let runtime = &document["plugins"][plugin]["containerd"]["runtimes"][handler];
        runtime["options"]["BinaryName"].as_str().unwrap().to_owned()
    }

    const V3: &str = "# mine\nversion = 3\noom_score = 0\n[plugins.\"io.containerd.cri.v1.runtime\"]\ndisable_apparmor = true # why\n";

    #[test]
    fn version_3_gets_one_line_and_a_drop_in() {
        let got = want(V3, 2);
        assert_eq!(
            got.main,
            V3.replace(
                "version = 3\n",
                "version = 3\nimports = [\"/etc/containerd/conf.d/transship.toml\"] # added by Transship\n"
            )
        );
        assert_eq!(
            got.drop_in,
            "# Written by Transship, removed with it. Changes here are overwritten.\n\
             version = 3\n\n\
             [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc.options]\n\
             BinaryName = \"/opt/transship/bin/transship-runc\"\n"
        );
        assert_eq!(got.former_binary, None);
        assert_eq!(want(&got.main, 2), got, "once more changes nothing");
    }

    #[test]
    fn removing_gives_the_users_text_back() {
        let listed = V3.replace("version = 3", "version = 3\nimports = [\"/etc/x.toml\"]");
        let several = V3.replace("version = 3", "version = 3\nimports = [\n  \"/etc/x.toml\",\n]");
        for text in [V3, &listed, &several, "version = 2", "", "[plugins]\n"] {
            let with = want(text, 2).main;
            assert!(parsed(&with)["imports"].as_array().is_some(), "{with}");
            let without = without_import(&with, Path::new(DROP_IN)).unwrap().unwrap();
            assert_eq!(
                parsed(&without).to_string().trim_end(),
                parsed(text).to_string().trim_end()
            );
        }
        assert_eq!(without_import(V3, Path::new(DROP_IN)).unwrap(), None);
    }

    #[test]
    fn a_users_edits_around_our_line_survive_its_removal() {
        let edited = want(V3, 2).main.replace("oom_score = 0", "oom_score = -5");
        let rest = without_import(&edited, Path::new(DROP_IN)).unwrap().unwrap();
        assert_eq!(rest, V3.replace("oom_score = 0", "oom_score = -5"));
    }

    #[test]
    fn an_import_that_covers_the_drop_in_is_left_alone() {
        let text = format!("version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n{}", "");
        assert_eq!(want(&text, 2).main, text);
        assert!(covers("/a/*.toml", "/a/b.toml"));
        for (pattern, path) in
            [("/a/*.toml", "/a/b/c.toml"), ("/a/*.conf", "/a/b.toml"), ("/a/b", "/a/c")]
        {
            assert!(!covers(pattern, path));
        }
    }

    #[test]
    fn without_a_configuration_one_is_made_and_removed_whole() {
        for (major, version) in [(1, 2), (2, 3)] {
            let got = wanted(None, Path::new(DROP_IN), major).unwrap();
            assert_eq!(parsed(&got.main)["version"].as_integer(), Some(version));
            let without = without_import(&got.main, Path::new(DROP_IN)).unwrap();
            assert_eq!(without.as_deref(), Some(""));
            assert_eq!(want(&got.main, major).main, got.main);
        }
    }

    #[test]
    fn containerd_1_gets_the_users_whole_section_again() {
        let text = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"pause:1\"\n  [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n    default_runtime_name = \"main\"\n    [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.main]\n      runtime_type = \"io.containerd.runc.v2\"\n      options = { SystemdCgroup = true, BinaryName = \"/usr/bin/nvidia-container-runtime\" }\n";
        let got = want(text, 1);
        let cri = "io.containerd.grpc.v1.cri";
        assert_eq!(binary(&got.drop_in, cri, "main"), WRAPPER);
        let drop_in = parsed(&got.drop_in);
        let section = &drop_in["plugins"][cri];
        assert_eq!(section["sandbox_image"].as_str(), Some("pause:1"));
        let options = &section["containerd"]["runtimes"]["main"]["options"];
        assert_eq!(options["SystemdCgroup"].as_bool(), Some(true));
        assert_eq!(got.former_binary.as_deref(), Some("/usr/bin/nvidia-container-runtime"));
        // containerd 2 merges, so there only our setting is written.
        let merged = want(text, 2);
        assert_eq!(binary(&merged.drop_in, cri, "main"), WRAPPER);
        assert!(!merged.drop_in.contains("sandbox_image"));
    }

    #[test]
    fn what_cannot_work_is_refused_in_words() {
        let refuse = |text: &str, major| wanted(Some(text), Path::new(DROP_IN), major).unwrap_err();
        assert!(refuse("[plugins.cri]\n", 1).contains("version = 2"));
        assert!(refuse("version = ", 2).contains("not TOML"));
        let kata = "version = 3\n[plugins.\"io.containerd.cri.v1.runtime\".containerd]\ndefault_runtime_name = \"kata\"\n[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.kata]\nruntime_type = \"io.containerd.kata.v2\"\n";
        assert!(refuse(kata, 2).contains("kata"));
        assert!(refuse("version = 3\nimports = \"x\"\n", 2).contains("imports"));
    }
}
