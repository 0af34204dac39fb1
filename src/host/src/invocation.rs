//! Reading the command line of runc: enough to know what containerd's shim wants, of which container.
//!
//! runc's own parser takes global options, a verb, the verb's options and its arguments; options are written
//! with one or two dashes, their value after `=` or as the next argument.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use transship_protocol::Verb;

/// runc's state directory when none is given.
pub const DEFAULT_ROOT: &str = "/run/runc";

/// Global options that take a value.
const GLOBAL_VALUES: &[&str] = &["root", "log", "log-format", "rootless", "criu"];

/// Options of the verbs looked at that take a value.
const VERB_VALUES: &[&str] = &[
    "bundle",
    "b",
    "console-socket",
    "pidfd-socket",
    "pid-file",
    "preserve-fds",
    "image-path",
    "work-path",
    "parent-path",
    "manage-cgroups-mode",
    "status-fd",
    "page-server",
    "empty-ns",
    "format",
    "lsm-profile",
    "lsm-mount-context",
];

/// A command line of runc, as far as Transship looks at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Invocation {
    /// The arguments before the verb, unchanged.
    pub globals: Vec<OsString>,
    /// The verb as written; `None` for `runc --version` and the like.
    pub verb: Option<OsString>,
    /// `--root`.
    pub root: Option<PathBuf>,
    /// `--log`.
    pub log: Option<PathBuf>,
    /// Whether `--log-format` is `json`.
    pub log_json: bool,
    /// `--bundle`.
    pub bundle: Option<PathBuf>,
    /// `--pid-file`.
    pub pid_file: Option<PathBuf>,
    /// `--console-socket`.
    pub console_socket: Option<PathBuf>,
    /// `--no-pivot`.
    pub no_pivot: bool,
    /// Whether `--format` is `json`.
    pub format_json: bool,
    /// The container's id: the first argument of the verb.
    pub id: Option<String>,
}

impl Invocation {
    /// Reads the arguments after the program's name. Never fails: what it does not understand is runc's to
    /// refuse.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Self {
        let mut parsed = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let Some((name, value)) = option(&argument) else {
                parsed.verb = Some(argument);
                break;
            };
            let takes_value = value.is_none() && GLOBAL_VALUES.contains(&name.as_str());
            parsed.globals.push(argument);
            let value = if takes_value {
                let next = arguments.next();
                parsed.globals.extend(next.clone());
                next
            } else {
                value
            };
            match (name.as_str(), value) {
                ("root", Some(value)) => parsed.root = Some(value.into()),
                ("log", Some(value)) => parsed.log = Some(value.into()),
                ("log-format", Some(value)) => parsed.log_json = value == "json",
                _ => {}
            }
        }
        let mut only_arguments = false;
        while let Some(argument) = arguments.next() {
            if argument == "--" {
                only_arguments = true;
                continue;
            }
            let option = if only_arguments { None } else { option(&argument) };
            let Some((name, value)) = option else {
                if parsed.id.is_none() {
                    parsed.id = argument.into_string().ok();
                }
                // Options come before the arguments; `kill ID -9` has none after.
                only_arguments = true;
                continue;
            };
            let value = match value {
                None if VERB_VALUES.contains(&name.as_str()) => arguments.next(),
                value => value,
            };
            match (name.as_str(), value) {
                ("bundle" | "b", Some(value)) => parsed.bundle = Some(value.into()),
                ("pid-file", Some(value)) => parsed.pid_file = Some(value.into()),
                ("console-socket", Some(value)) => parsed.console_socket = Some(value.into()),
                ("no-pivot", _) => parsed.no_pivot = true,
                ("format", Some(value)) => parsed.format_json = value == "json",
                _ => {}
            }
        }
        parsed
    }

    /// Whether a program asks for the container's processes.
    pub fn lists_processes(&self) -> bool {
        self.format_json && self.verb.as_deref().is_some_and(|verb| verb == "ps")
    }

    /// What the verb means to the commit protocol.
    pub fn protocol_verb(&self) -> Verb {
        match self.verb.as_deref().map(OsStr::as_bytes) {
            Some(b"create" | b"run" | b"restore") => Verb::Create,
            Some(b"start") => Verb::Start,
            Some(b"kill") => Verb::Kill,
            Some(b"delete") => Verb::Delete,
            Some(b"resume") => Verb::Resume,
            _ => Verb::Other,
        }
    }

    /// runc's state directory of the container.
    pub fn state_dir(&self) -> Option<PathBuf> {
        state_dir(self.root.as_deref().unwrap_or(Path::new("")), self.id.as_deref()?)
    }
}

/// runc's state directory of a container; an empty `root` stands for the default.
pub(crate) fn state_dir(root: &Path, id: &str) -> Option<PathBuf> {
    // runc refuses such ids; do not follow them into other directories.
    if id.is_empty() || id.contains('/') || id.starts_with('.') {
        return None;
    }
    let root = if root.as_os_str().is_empty() { Path::new(DEFAULT_ROOT) } else { root };
    Some(root.join(id))
}

/// Name and attached value of an option; `None` for anything else.
fn option(argument: &OsStr) -> Option<(String, Option<OsString>)> {
    let bytes = argument.as_bytes();
    let name = bytes.strip_prefix(b"--").or_else(|| bytes.strip_prefix(b"-"))?;
    if name.is_empty() {
        return None;
    }
    let (name, value) = match name.iter().position(|b| *b == b'=') {
        Some(at) => (&name[..at], Some(OsStr::from_bytes(&name[at + 1..]).to_owned())),
        None => (name, None),
    };
    Some((String::from_utf8_lossy(name).into_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Invocation {
        Invocation::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_shims_create_is_understood() {
        let got = parse(
            "--root /run/containerd/runc/k8s.io --log /b/log.json --log-format json \
             create --bundle /b --pid-file /b/init.pid c1",
        );
        assert_eq!(got.protocol_verb(), Verb::Create);
        assert_eq!(got.root, Some("/run/containerd/runc/k8s.io".into()));
        assert_eq!(got.log, Some("/b/log.json".into()));
        assert!(got.log_json);
        assert_eq!(got.bundle, Some("/b".into()));
        assert_eq!(got.pid_file, Some("/b/init.pid".into()));
        assert_eq!(got.id.as_deref(), Some("c1"));
        assert_eq!(got.globals.len(), 6);
        assert_eq!(got.state_dir(), Some("/run/containerd/runc/k8s.io/c1".into()));
    }

    #[test]
    fn each_spelling_finds_verb_and_id() {
        let cases = [
            ("kill c1 15", Verb::Kill, Some("c1")),
            ("--debug --systemd-cgroup kill --all c1 9", Verb::Kill, Some("c1")),
            ("--root=/r -log=/l delete --force c1", Verb::Delete, Some("c1")),
            ("start c1", Verb::Start, Some("c1")),
            ("resume -- c1", Verb::Resume, Some("c1")),
            ("run -d -b /b c1", Verb::Create, Some("c1")),
            ("restore --image-path /i --work-path /w --detach c1", Verb::Create, Some("c1")),
            ("exec --process /p c1", Verb::Other, Some("/p")),
            ("ps --format json c1", Verb::Other, Some("c1")),
            ("--version", Verb::Other, None),
            ("", Verb::Other, None),
            ("kill c1 -9", Verb::Kill, Some("c1")),
            ("create --bundle=/b --no-pivot c1", Verb::Create, Some("c1")),
        ];
        for (line, verb, id) in cases {
            let got = parse(line);
            assert_eq!((got.protocol_verb(), got.id.as_deref()), (verb, id), "{line}");
        }
    }

    #[test]
    fn a_list_of_processes_for_a_program_is_told_from_one_for_people() {
        for (line, lists) in [
            ("--root /r ps --format json c1", true),
            ("ps --format=json c1", true),
            ("ps c1", false),
            ("ps --format table c1", false),
            ("list --format json", false),
        ] {
            assert_eq!(parse(line).lists_processes(), lists, "{line}");
        }
    }

    #[test]
    fn an_id_does_not_lead_out_of_the_state_directory() {
        for line in ["kill ../x", "kill a/b", "kill .", "start"] {
            assert_eq!(parse(line).state_dir(), None, "{line}");
        }
        assert_eq!(parse("kill c1").state_dir(), Some("/run/runc/c1".into()));
    }
}
