//! Ending a container the way containerd would, without its knowing: by its image's stop signal. And whether a
//! container was ever started.

use std::path::Path;

use k8s_cri::v1 as cri;
use tokio::process::Command;

use crate::cri::{Cri, call, info_json};
use crate::{Error, Layout, Result};

/// What containerd sends where the image says nothing.
const DEFAULT: &str = "SIGTERM";
/// The first and the last real-time signal as C libraries number them.
const RTMIN: u32 = 34;
const RTMAX: u32 = 64;

impl Cri {
    /// Whether a container was started, be it that it has ended since.
    pub async fn was_started(&self, container_id: &str) -> Result<bool> {
        let status = self.container_status(container_id, false).await?.status;
        Ok(status.is_some_and(|status| status.started_at > 0))
    }

    /// The signal by which a container's image wants it to end; none if it does not say.
    pub async fn stop_signal(&self, container_id: &str) -> Result<Option<String>> {
        let image =
            self.container_status(container_id, false).await?.status.map(|status| status.image_ref);
        let image = cri::ImageSpec { image: image.unwrap_or_default(), ..Default::default() };
        let request = cri::ImageStatusRequest { image: Some(image), verbose: true };
        let reply = self.images.clone().image_status(request).await;
        let info = info_json(&reply.map_err(call("ImageStatus"))?.into_inner().info);
        let signal =
            info.as_ref().and_then(|info| info["imageSpec"]["config"]["StopSignal"].as_str());
        Ok(signal.map(str::to_owned))
    }
}

/// Sends a signal to the first process of a container, by its name in an image or a manifest; an empty one is
/// what containerd sends then. `false`: runc does not, for the process has ended or for another reason.
pub async fn signal(
    layout: &Layout,
    runc: &Path,
    container_id: &str,
    signal: &str,
) -> Result<bool> {
    let run = Command::new(runc)
        .arg("--root")
        .arg(&layout.runc_root)
        .args(["kill", container_id, &argument(signal)])
        .output()
        .await;
    let failed = |source| Error::Run { program: runc.display().to_string(), source };
    Ok(run.map_err(failed)?.status.success())
}

/// Has runc delete a container that has ended, whatever is left of it. `false`: runc does not.
pub async fn delete(layout: &Layout, runc: &Path, container_id: &str) -> Result<bool> {
    let run = Command::new(runc)
        .arg("--root")
        .arg(&layout.runc_root)
        .args(["delete", "--force", container_id])
        .output()
        .await;
    let failed = |source| Error::Run { program: runc.display().to_string(), source };
    Ok(run.map_err(failed)?.status.success())
}

/// runc knows names and numbers, but not the real-time signals' names. What is neither is taken for nothing:
/// it comes from an image, and must not become an option.
fn argument(signal: &str) -> String {
    let name = signal.trim().to_ascii_uppercase();
    let bare = name.strip_prefix("SIG").unwrap_or(&name);
    let real_time = |from: &str, sign: char| {
        let rest = bare.strip_prefix(from)?;
        if rest.is_empty() { Some(0) } else { rest.strip_prefix(sign)?.parse::<u32>().ok() }
    };
    let number = real_time("RTMIN", '+')
        .map(|above| RTMIN.saturating_add(above))
        .or_else(|| real_time("RTMAX", '-').map(|below| RTMAX.saturating_sub(below)))
        .filter(|number| (RTMIN..=RTMAX).contains(number));
    match number {
        Some(number) => number.to_string(),
        None if bare.is_empty() || !bare.chars().all(|c| c.is_ascii_alphanumeric()) => {
            DEFAULT.to_owned()
        }
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_signal_becomes_an_argument_for_runc() {
        for (signal, wanted) in [
            ("", "SIGTERM"),
            ("SIGQUIT", "SIGQUIT"),
            ("quit", "QUIT"),
            ("3", "3"),
            ("SIGRTMIN+3", "37"),
            ("rtmin", "34"),
            ("SIGRTMAX-4", "60"),
            ("SIGRTMIN+99", "SIGTERM"),
            ("--all", "SIGTERM"),
        ] {
            assert_eq!(argument(signal), wanted, "{signal:?}");
        }
    }
}
