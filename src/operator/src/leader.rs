//! Leader election by a Lease, with the semantics of client-go: expiry is counted from our own
//! monotonic time of the last observed change (never by comparing clocks with the holder), every
//! write is a compare-and-swap, and who cannot renew in time stops at once.
//!
//! [`decide`] is pure; [`Elector`] reads, writes and keeps time. Who has lost the lead is a candidate
//! again; whoever watches it must then drop what it had in hand.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Others may take over when the lease has not changed for so long. Short, because a pod may stand
/// still until there is a leader; and it may be short, because what is recorded does not depend on
/// there being only one (a former leader's write fails by its resourceVersion).
pub const LEASE_DURATION: Duration = Duration::from_secs(6);
/// A leader that could not renew for so long is none any more.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(4);
/// Pause between two tries.
pub const RETRY_PERIOD: Duration = Duration::from_secs(1);

/// By how much the pauses of two candidates differ at most.
const SPREAD_MILLIS: u64 = 400;

/// What to do about a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody holds it, or its holder has not renewed it in time: write it.
    Acquire,
    /// It is ours: renew it.
    Renew,
    /// Somebody else holds it.
    Yield {
        /// Who.
        holder: String,
    },
}

/// What to do about `lease`, which last changed `unchanged` ago by our own clock.
pub fn decide(lease: Option<&LeaseSpec>, identity: &str, unchanged: Duration) -> Verdict {
    let Some(spec) = lease else { return Verdict::Acquire };
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    if holder.is_empty() {
        return Verdict::Acquire;
    }
    if holder == identity {
        return Verdict::Renew;
    }
    let seconds = spec.lease_duration_seconds.unwrap_or(0);
    let duration = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    if unchanged > duration {
        Verdict::Acquire
    } else {
        Verdict::Yield { holder: holder.to_owned() }
    }
}

/// Takes part in the election.
pub struct Elector {
    leases: Api<Lease>,
    namespace: String,
    name: String,
    identity: String,
    leading: watch::Sender<bool>,
    observed: Option<(LeaseSpec, Instant)>,
}

impl Elector {
    /// A candidate, and where it can be seen whether it leads: each change is seen there, also of
    /// one who leads again at once.
    pub fn new(
        client: Client,
        namespace: &str,
        name: &str,
        identity: String,
    ) -> (Self, watch::Receiver<bool>) {
        let (leading, watched) = watch::channel(false);
        let elector = Self {
            leases: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity,
            leading,
            observed: None,
        };
        (elector, watched)
    }

    /// Takes part until `stop`, and then releases the lead.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut renewed: Option<Instant> = None;
        loop {
            let limit = renewed.map_or(RENEW_DEADLINE, |at| {
                (at + RENEW_DEADLINE).saturating_duration_since(Instant::now())
            });
            let sent = Instant::now();
            let held = tokio::select! {
                () = stop.cancelled() => return self.release(renewed.is_some()).await,
                tried = tokio::time::timeout(limit, self.attempt()) => tried,
            };
            match held {
                Ok(Ok(true)) => {
                    // Counted from when it was sent: it may have been applied right then.
                    renewed = Some(sent);
                    if self.set(true) {
                        tracing::info!(identity = self.identity, "leading");
                    }
                }
                Ok(Ok(false)) => {
                    if renewed.take().is_some() {
                        self.set(false);
                        tracing::error!("somebody else took the lead");
                    }
                }
                Ok(Err(error)) => tracing::warn!(%error, "the lease could not be renewed"),
                Err(_) => tracing::warn!("the lease could not be renewed in time"),
            }
            if renewed.is_some_and(|at| at.elapsed() >= RENEW_DEADLINE) {
                renewed = None;
                self.set(false);
                tracing::error!("lost the lead");
            }
            tokio::select! {
                () = stop.cancelled() => return self.release(renewed.is_some()).await,
                () = tokio::time::sleep(self.pause()) => {}
            }
        }
    }

    /// Candidates must not all try at the same moment.
    fn pause(&self) -> Duration {
        let spread = self.identity.bytes().fold(7u64, |h, b| h.wrapping_mul(31) + u64::from(b));
        RETRY_PERIOD + Duration::from_millis(spread % SPREAD_MILLIS)
    }

    /// Whether that is something new.
    fn set(&self, leads: bool) -> bool {
        self.leading.send_if_modified(|led| std::mem::replace(led, leads) != leads)
    }

    /// Whether we hold the lease now.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let found = self.leases.get_opt(&self.name).await?;
        let spec = found.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        let unchanged = match (&spec, &self.observed) {
            (Some(spec), Some((seen, at))) if spec == seen => at.elapsed(),
            (Some(spec), _) => {
                self.observed = Some((spec.clone(), Instant::now()));
                Duration::ZERO
            }
            (None, _) => Duration::ZERO,
        };
        let acquire = match decide(spec.as_ref(), &self.identity, unchanged) {
            Verdict::Yield { holder } => {
                tracing::trace!(holder, "following");
                return Ok(false);
            }
            Verdict::Acquire => true,
            Verdict::Renew => false,
        };
        let now = MicroTime(Timestamp::now());
        let mut wanted = spec.clone().unwrap_or_default();
        if acquire {
            wanted.acquire_time = Some(now.clone());
            // The first holder is no transition.
            wanted.lease_transitions =
                Some(spec.map_or(0, |s| s.lease_transitions.unwrap_or(0) + 1));
        }
        wanted.holder_identity = Some(self.identity.clone());
        wanted.lease_duration_seconds = i32::try_from(LEASE_DURATION.as_secs()).ok();
        wanted.renew_time = Some(now);
        self.write(found, wanted).await
    }

    /// Writes if nobody else did; a conflict means that somebody did.
    async fn write(&mut self, found: Option<Lease>, spec: LeaseSpec) -> Result<bool, kube::Error> {
        let written = match found {
            Some(mut lease) => {
                lease.spec = Some(spec);
                self.leases.replace(&self.name, &PostParams::default(), &lease).await
            }
            None => {
                let mut lease = Lease { spec: Some(spec), ..Lease::default() };
                lease.metadata.name = Some(self.name.clone());
                lease.metadata.namespace = Some(self.namespace.clone());
                self.leases.create(&PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(lease) => {
                self.observed = Some((lease.spec.unwrap_or_default(), Instant::now()));
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
                // Read again at the next try, and only then judge who leads.
                Ok(*self.leading.borrow() && self.still_ours().await?)
            }
            Err(error) => Err(error),
        }
    }

    async fn still_ours(&self) -> Result<bool, kube::Error> {
        let lease = self.leases.get(&self.name).await?;
        let holder = lease.spec.and_then(|s| s.holder_identity);
        Ok(holder.as_deref() == Some(self.identity.as_str()))
    }

    /// Lets the next leader begin at once.
    async fn release(self, held: bool) {
        self.set(false);
        if held && let Ok(Some(mut lease)) = self.leases.get_opt(&self.name).await {
            let ours = |spec: &&mut LeaseSpec| {
                spec.holder_identity.as_deref() == Some(self.identity.as_str())
            };
            if let Some(spec) = lease.spec.as_mut().filter(ours) {
                spec.holder_identity = Some(String::new());
                spec.lease_duration_seconds = Some(1);
                spec.renew_time = Some(MicroTime(Timestamp::now()));
                match self.leases.replace(&self.name, &PostParams::default(), &lease).await {
                    Ok(_) => tracing::info!("released the lead"),
                    Err(error) => tracing::warn!(%error, "the lead could not be released"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};

    use axum::body::Body;
    use axum::http::{Method, Request, Response, StatusCode};
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    /// An API server with one lease.
    #[derive(Clone, Default)]
    struct ApiServer {
        lease: Arc<Mutex<Option<Value>>>,
        down: Arc<AtomicBool>,
    }

    impl ApiServer {
        fn client(&self) -> Client {
            let server = self.clone();
            let service =
                move |request: Request<kube::client::Body>| server.clone().answer(request);
            Client::new(tower::service_fn(service), "ns")
        }

        async fn answer(
            self,
            request: Request<kube::client::Body>,
        ) -> Result<Response<Body>, std::io::Error> {
            if self.down.load(Ordering::Relaxed) {
                return Err(std::io::Error::other("down"));
            }
            let reads = request.method() == Method::GET;
            let body = axum::body::to_bytes(Body::new(request.into_body()), 1 << 20).await;
            let body = body.map_err(std::io::Error::other)?;
            let mut lease = self.lease.lock().unwrap();
            if !reads {
                *lease = Some(serde_json::from_slice(&body)?);
            }
            let (status, answer) = match &*lease {
                Some(lease) => (StatusCode::OK, lease.clone()),
                None => {
                    let none = json!({"status": "Failure", "reason": "NotFound", "message": "",
                        "code": 404});
                    (StatusCode::NOT_FOUND, none)
                }
            };
            let response = Response::builder().status(status).body(Body::from(answer.to_string()));
            response.map_err(std::io::Error::other)
        }

        fn holder(&self) -> Value {
            self.lease.lock().unwrap().as_ref().unwrap()["spec"]["holderIdentity"].clone()
        }
    }

    #[tokio::test]
    async fn who_has_lost_the_lead_is_a_candidate_again() {
        let server = ApiServer::default();
        let (elector, mut leading) = Elector::new(server.client(), "ns", "lease", "me".into());
        let stop = CancellationToken::new();
        let election = tokio::spawn(elector.run(stop.clone()));
        let mut becomes = async |leads: bool| {
            let limit = LEASE_DURATION + 3 * RETRY_PERIOD;
            let seen = leading.wait_for(|leading| *leading == leads);
            assert!(tokio::time::timeout(limit, seen).await.unwrap().is_ok());
        };
        becomes(true).await;
        server.down.store(true, Ordering::Relaxed);
        becomes(false).await;
        server.down.store(false, Ordering::Relaxed);
        becomes(true).await;
        if let Some(lease) = server.lease.lock().unwrap().as_mut() {
            lease["spec"]["holderIdentity"] = "other".into();
        }
        becomes(false).await;
        assert_eq!(server.holder(), "other", "what is another's is left alone");
        // The other one says nothing more.
        becomes(true).await;
        stop.cancel();
        election.await.unwrap();
        assert_eq!(server.holder(), "", "released");
    }

    fn lease(holder: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            // A holder whose clock is a year off is still the holder.
            renew_time: Some(MicroTime(Timestamp::UNIX_EPOCH)),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_leader_has_stopped_before_another_begins_and_tries_more_than_once_before() {
        let try_again = RETRY_PERIOD + Duration::from_millis(SPREAD_MILLIS);
        assert!(RENEW_DEADLINE + Duration::from_secs(1) < LEASE_DURATION);
        assert!(try_again * 2 < RENEW_DEADLINE);
        assert!(LEASE_DURATION + try_again < Duration::from_secs(8), "a pod may stand still");
    }

    #[rstest]
    #[case(None, 0, Verdict::Acquire)]
    #[case(Some(lease("")), 0, Verdict::Acquire)]
    #[case(Some(lease("me")), 100, Verdict::Renew)]
    #[case(Some(lease("other")), 0, Verdict::Yield { holder: "other".into() })]
    #[case(Some(lease("other")), 15, Verdict::Yield { holder: "other".into() })]
    #[case(Some(lease("other")), 16, Verdict::Acquire)]
    fn a_lease_is_taken_only_when_it_has_not_changed_for_its_duration(
        #[case] lease: Option<LeaseSpec>,
        #[case] unchanged_seconds: u64,
        #[case] wanted: Verdict,
    ) {
        let unchanged = Duration::from_secs(unchanged_seconds);
        assert_eq!(decide(lease.as_ref(), "me", unchanged), wanted);
    }
}
