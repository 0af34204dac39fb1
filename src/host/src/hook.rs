//! A postStart hook, as the holder of a target runs it in kubelet's place.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::paths::check_name;

/// The hook of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Name of the container.
    pub container: String,
    /// What is to be done.
    #[serde(flatten)]
    pub action: HookAction,
}

/// What a hook does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HookAction {
    /// Runs a program in the container.
    Exec {
        /// Program and arguments; no shell.
        command: Vec<String>,
    },
    /// Sends a request from the node.
    HttpGet(HttpGet),
    /// Waits.
    Sleep {
        /// How long.
        seconds: u64,
    },
}

/// The request of a hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpGet {
    /// Over TLS; no certificate is asked for its name.
    pub https: bool,
    /// Whom to ask; the pod's own address if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The port.
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// Further headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
}

impl Hook {
    /// Checks that it can be run at all.
    pub fn validate(&self) -> Result<()> {
        check_name("hook", &self.container)?;
        let rule = match &self.action {
            HookAction::Exec { command } if command.is_empty() => "must have a command",
            HookAction::HttpGet(get) if get.port == 0 => "must have a port",
            _ => return Ok(()),
        };
        Err(Error::Invalid { what: "hook", value: self.container.clone(), rule })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_come_back_as_they_were_written() {
        let get = HttpGet {
            https: false,
            host: None,
            port: 80,
            path: "/".into(),
            headers: vec![("a".into(), "b".into())],
        };
        for (action, text) in [
            (
                HookAction::Exec { command: vec!["x".into()] },
                r#"{"container":"web","exec":{"command":["x"]}}"#,
            ),
            (HookAction::Sleep { seconds: 3 }, r#"{"container":"web","sleep":{"seconds":3}}"#),
            (
                HookAction::HttpGet(get),
                r#"{"container":"web","httpGet":{"https":false,"port":80,"path":"/","headers":[["a","b"]]}}"#,
            ),
        ] {
            let hook = Hook { container: "web".into(), action };
            assert_eq!(serde_json::to_string(&hook).unwrap(), text);
            assert_eq!(serde_json::from_str::<Hook>(text).unwrap(), hook);
            hook.validate().unwrap();
        }
    }
}
