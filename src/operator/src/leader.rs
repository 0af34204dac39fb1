//! Leader election on a Lease, with client-go's semantics.
//!
//! Expiry is measured on our own monotonic clock from the moment we saw the Lease change, never
//! from the time that stands in it: clocks of two machines differ. A leader that could not renew
//! in time gives up; its process ends, so that nothing of it goes on deciding.
//!
//! Leadership only keeps two operators from doing the same work twice. What must not happen twice
//! (a decision) is guarded by the resourceVersion and the rules of the kind.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::PostParams,
};

/// How long others wait after the last renewal that they saw.
const LEASE_DURATION: Duration = Duration::from_secs(15);
/// How long the leader tries to renew before it gives up.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between two tries.
const RETRY_PERIOD: Duration = Duration::from_secs(2);

/// What to do about a Lease as it stands.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// It is free or expired: write our name.
    Acquire,
    /// It is ours: renew it.
    Renew,
    /// Somebody else holds it.
    Wait,
}

/// Decides by what stands in the Lease and by when we last saw it change.
pub fn decide(lease: Option<&LeaseSpec>, identity: &str, unchanged_for: Duration) -> Step {
    let Some(spec) = lease else { return Step::Acquire };
    match spec.holder_identity.as_deref() {
        None | Some("") => Step::Acquire,
        Some(holder) if holder == identity => Step::Renew,
        Some(_) => {
            let seconds = spec.lease_duration_seconds.unwrap_or(0).max(0);
            let duration = Duration::from_secs(seconds.unsigned_abs().into());
            if unchanged_for > duration { Step::Acquire } else { Step::Wait }
        }
    }
}

/// One participant in the election.
pub struct Election {
    api: Api<Lease>,
    name: String,
    identity: String,
    seen: Option<(LeaseSpec, Instant)>,
}

impl Election {
    /// Takes part under the name `identity` (the pod's).
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: identity.to_owned(),
            seen: None,
        }
    }

    /// Returns when this process leads.
    pub async fn acquire(&mut self) {
        loop {
            match self.attempt().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::warn!(error = format!("{error:#}"), "asking for the lease"),
            }
            tokio::time::sleep(RETRY_PERIOD).await;
        }
    }

    /// Renews for as long as that works; returns the reason why this process leads no more.
    pub async fn hold(&mut self) -> anyhow::Error {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(RETRY_PERIOD).await;
            let left = RENEW_DEADLINE.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, self.attempt()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => return anyhow::anyhow!("another operator holds the lease"),
                Ok(Err(error)) => tracing::warn!(error = format!("{error:#}"), "renewing the lease"),
                Err(_) => {
                    return anyhow::anyhow!("the lease could not be renewed for {RENEW_DEADLINE:?}");
                }
            }
        }
    }

    /// Gives the lease back, so that the next one need not wait.
    pub async fn release(&mut self) -> Result<()> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else { return Ok(()) };
        let Some(spec) = lease.spec.as_mut() else { return Ok(()) };
        if spec.holder_identity.as_deref() != Some(self.identity.as_str()) {
            return Ok(());
        }
        spec.holder_identity = None;
        spec.lease_duration_seconds = Some(1);
        self.api.replace(&self.name, &PostParams::default(), &lease).await?;
        Ok(())
    }

    /// One try; true when the lease is ours now.
    async fn attempt(&mut self) -> Result<bool> {
        let now = MicroTime(Timestamp::now());
        let Some(mut lease) = self.api.get_opt(&self.name).await.context("reading")? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                spec: Some(self.spec(None, &now)),
            };
            return written(self.api.create(&PostParams::default(), &lease).await);
        };
        let found = lease.spec.clone().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|(spec, _)| *spec != found) {
            self.seen = Some((found.clone(), Instant::now()));
        }
        let unchanged = self.seen.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed());
        if decide(Some(&found), &self.identity, unchanged) == Step::Wait {
            return Ok(false);
        }
        lease.spec = Some(self.spec(Some(&found), &now));
        written(self.api.replace(&self.name, &PostParams::default(), &lease).await)
    }

    fn spec(&self, before: Option<&LeaseSpec>, now: &MicroTime) -> LeaseSpec {
        let ours = before.is_some_and(|spec| spec.holder_identity.as_ref() == Some(&self.identity));
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            acquire_time: before
                .filter(|_| ours)
                .and_then(|spec| spec.acquire_time.clone())
                .or_else(|| Some(now.clone())),
            renew_time: Some(now.clone()),
            lease_transitions: Some(if ours { transitions } else { transitions + 1 }),
            ..LeaseSpec::default()
        }
    }
}

/// A conflict means that another one was quicker.
fn written(result: kube::Result<Lease>) -> Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => bail!(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, seconds: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(seconds),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_lease_is_taken_when_it_is_free_or_unchanged_for_its_duration() {
        let second = Duration::from_secs(1);
        for (spec, unchanged, step) in [
            (None, Duration::ZERO, Step::Acquire),
            (Some(lease("", 15)), Duration::ZERO, Step::Acquire),
            (Some(lease("me", 15)), 100 * second, Step::Renew),
            (Some(lease("other", 15)), 15 * second, Step::Wait),
            (Some(lease("other", 15)), 16 * second, Step::Acquire),
            (Some(lease("other", -1)), second, Step::Acquire),
        ] {
            assert_eq!(decide(spec.as_ref(), "me", unchanged), step, "{spec:?} {unchanged:?}");
        }
    }
}
