//! How the containers of a pod are ended gracefully: what kubelet would do at the pod's deletion, done by a
//! holder where nobody may see the pod as deleted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::hook::Hook;
use crate::paths::check_name;

/// The most that a container is waited for, in seconds: a day.
pub const LONGEST_GRACE: u32 = 86_400;

/// What the pod's manifest says of its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ending {
    /// How long the containers may take in all, hooks included.
    pub grace_seconds: u32,
    /// The preStop hooks of those containers that have one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
    /// The signals that containers' manifests name in the place of their images', by container.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub signals: BTreeMap<String, String>,
}

impl Ending {
    /// The hook of a container.
    pub fn hook(&self, container: &str) -> Option<&Hook> {
        self.hooks.iter().find(|hook| hook.container == container)
    }

    /// Checks everything that becomes a name, an argument, or a pause.
    pub fn validate(&self) -> Result<()> {
        let invalid =
            |what, value: &str, rule| Error::Invalid { what, value: value.to_owned(), rule };
        if self.grace_seconds > LONGEST_GRACE {
            let seconds = self.grace_seconds.to_string();
            return Err(invalid("graceSeconds", &seconds, "must be a day at most"));
        }
        for (container, signal) in &self.signals {
            check_name("container name", container)?;
            let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-');
            if signal.starts_with('-') || !signal.chars().all(is_plain) {
                let signal: String = signal.chars().take(80).collect();
                return Err(invalid("stopSignal", &signal, "must be the name of a signal"));
            }
        }
        self.hooks.iter().try_for_each(Hook::validate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook::HookAction;

    fn ending() -> Ending {
        let hook = |container: &str, action| Hook { container: container.into(), action };
        Ending {
            grace_seconds: 30,
            hooks: vec![
                hook("web", HookAction::Exec { command: vec!["/stop".into()] }),
                hook("log", HookAction::Sleep { seconds: 5 }),
            ],
            signals: [("web".to_owned(), "SIGRTMIN+3".to_owned())].into(),
        }
    }

    #[test]
    fn an_ending_comes_back_as_it_was_written() {
        let ending = ending();
        let text = serde_json::to_string(&ending).unwrap();
        assert_eq!(serde_json::from_str::<Ending>(&text).unwrap(), ending);
        ending.validate().unwrap();
        assert_eq!(ending.hook("log"), Some(&ending.hooks[1]));
        assert_eq!(ending.hook("other"), None);
        let least: Ending = serde_json::from_str(r#"{"graceSeconds": 0}"#).unwrap();
        assert_eq!(least, Ending::default());
    }

    #[test]
    fn what_is_no_name_signal_or_patience_is_refused() {
        let changes: [fn(&mut Ending); 5] = [
            |e| e.grace_seconds = LONGEST_GRACE + 1,
            |e| e.hooks[0].container = "../x".into(),
            |e| e.hooks[0].action = HookAction::Exec { command: vec![] },
            |e| drop(e.signals.insert("web".into(), "--all".into())),
            |e| drop(e.signals.insert("web".into(), "TERM x".into())),
        ];
        for change in changes {
            let mut bad = ending();
            change(&mut bad);
            assert!(bad.validate().is_err(), "{bad:?}");
        }
    }
}
