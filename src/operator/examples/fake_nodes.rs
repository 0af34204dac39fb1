//! Plays the nodes of a cluster that has only a control plane: kubelets (they make every pod that
//! is bound to them Running and Ready) and agents (they answer as if there were holders). With it
//! the operator's whole course can be tried against a real API server and real controllers in
//! seconds, without CRIU and without nodes.
//!
//! `fake_nodes NAMESPACE NODE=PORT NODE=PORT …`, with KUBECONFIG set and an operator running whose
//! authority lies in NAMESPACE. `FAULT=` names what shall go wrong: `dump`, `restore`, `lost`.

#![allow(clippy::unwrap_used, missing_docs, reason = "a tool for developers that may stop at once")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::Stream;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node as CoreNode, Pod, Secret};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use rcgen::{CertificateParams, Issuer, KeyPair};
use serde_json::json;
use tokio::sync::watch;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};
use transship_api::{self as api, Decision, Migration, names};
use transship_core::facts::PodFacts;
use transship_host::task::HolderTask;
use transship_rpc::agent_server::{Agent, AgentServer};
use transship_rpc::*;

type Sides = Arc<Mutex<HashMap<(String, i32), Holder>>>;

#[derive(Clone)]
struct Holder {
    task: HolderTask,
    status: watch::Sender<SideStatus>,
}

/// One node's agent.
#[derive(Clone)]
struct Fake {
    client: Client,
    sides: Sides,
    fault: String,
}

fn micros() -> i64 {
    Timestamp::now().as_microsecond()
}

impl Fake {
    fn side(&self, uid: &str, role: i32) -> Result<Holder, Status> {
        let sides = self.sides.lock().unwrap();
        sides.get(&(uid.to_owned(), role)).cloned().ok_or_else(|| Status::not_found("no such side"))
    }

    fn change(&self, uid: &str, role: Role, change: impl FnOnce(&mut SideStatus)) {
        if let Ok(side) = self.side(uid, role.into()) {
            side.status.send_modify(change);
        }
    }

    fn begin(&self, task: HolderTask, role: Role) {
        let uid = task.migration.uid.clone();
        let status = SideStatus {
            migration_uid: uid.clone(),
            role: role.into(),
            stage: Stage::Started.into(),
            pod_uid: task.pod.uid.clone(),
            ..SideStatus::default()
        };
        let mut sides = self.sides.lock().unwrap();
        let key = (uid.clone(), i32::from(role));
        sides.entry(key).or_insert_with(|| Holder { task, status: watch::channel(status).0 });
        let both = Role::Source as i32 + Role::Target as i32;
        if sides.contains_key(&(uid.clone(), both - i32::from(role))) {
            drop(sides);
            for role in [Role::Source, Role::Target] {
                self.change(&uid, role, |s| s.stage = s.stage.max(Stage::Connected.into()));
            }
        }
    }

    /// Freeze, dump, restore, votes.
    async fn freeze(self, uid: String) {
        let frozen = micros();
        self.change(&uid, Role::Source, |s| {
            s.stage = Stage::Frozen.into();
            s.frozen_at_unix_micros = frozen;
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        if self.fault == "dump" {
            return self.change(&uid, Role::Source, |s| {
                s.reason = "DumpFailed".into();
                s.message = "criu: no".into();
                s.stage = Stage::Aborted.into();
                s.closed = true;
                s.thawed_at_unix_micros = micros();
            });
        }
        self.change(&uid, Role::Source, |s| {
            s.stage = Stage::Voted.into();
            s.voted = true;
            s.bytes_total = 1 << 20;
            s.bytes_sent = 1 << 19;
        });
        if self.fault == "restore" {
            return self.change(&uid, Role::Target, |s| {
                s.reason = "RestoreFailed".into();
                s.message = "criu: no".into();
                s.stage = Stage::Aborted.into();
                s.never_thawed = true;
                s.closed = true;
            });
        }
        let Ok(target) = self.side(&uid, Role::Target.into()) else { return };
        let restored: Vec<String> = target.task.containers.iter().map(|c| c.name.clone()).collect();
        target.status.send_modify(|s| {
            s.restored = restored;
            s.waiting.clear();
            s.stage = Stage::Restored.into();
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        target.status.send_modify(|s| {
            s.stage = Stage::Voted.into();
            s.voted = true;
        });
    }

    /// What a holder does when it has read the Migration.
    async fn read(self, uid: String, role: Role) {
        let Ok(side) = self.side(&uid, role.into()) else { return };
        let of = &side.task.migration;
        let migrations: Api<Migration> = Api::namespaced(self.client.clone(), &of.namespace);
        let Ok(migration) = migrations.get(&of.name).await else { return };
        let status = migration.status.unwrap_or_default();
        side.status.send_modify(|s| {
            let Some(decision) = status.decision else { return };
            s.decision_read = format!("{decision:?}");
            match (decision, role) {
                _ if s.closed => {}
                (Decision::Abort, Role::Source) => {
                    s.stage = Stage::Aborted.into();
                    s.thawed_at_unix_micros = micros();
                    s.closed = true;
                }
                (Decision::Abort, _) => {
                    s.stage = Stage::Aborted.into();
                    s.never_thawed = true;
                    s.closed = true;
                }
                (Decision::Commit, Role::Target) if self.fault == "lost" => {
                    s.stage = Stage::Lost.into();
                    s.never_thawed = true;
                    s.closed = true;
                }
                (Decision::Commit, Role::Target) => {
                    s.stage = Stage::Thawed.into();
                    if s.thawed_at_unix_micros == 0 {
                        s.thawed_at_unix_micros = micros();
                    }
                    s.closed = status.resumed_at.is_some();
                }
                (Decision::Commit, _) if status.resolution.is_some() => {
                    s.stage = Stage::Aborted.into();
                    s.thawed_at_unix_micros = micros();
                    s.closed = true;
                }
                (Decision::Commit, _) => {}
            }
        });
    }

    /// Whether a container of the pod with this UID would run, by what the holders do with it.
    fn runs(&self, pod: &Pod) -> bool {
        let sides = self.sides.lock().unwrap();
        let uid = pod.uid().unwrap_or_default();
        let mut runs = !pod.labels().contains_key(names::MIGRATION_LABEL);
        for ((_, role), holder) in sides.iter().filter(|(_, h)| h.task.pod.uid == uid) {
            let status = holder.status.borrow();
            runs = match *role {
                role if role == Role::Source as i32 => status.stage() != Stage::Released,
                _ => !status.restored.is_empty() && !status.never_thawed,
            };
        }
        runs
    }
}

#[tonic::async_trait]
impl Agent for Fake {
    async fn inspect(
        &self,
        request: Request<InspectRequest>,
    ) -> Result<Response<InspectReply>, Status> {
        let mut facts = PodFacts { pod_uid: request.into_inner().pod_uid, ..Default::default() };
        let network = &mut facts.network;
        network.interface = "eth0".into();
        network.mac = "02:00:00:00:00:01".into();
        network.ip = "10.244.1.5".into();
        network.cni.name = "flat".into();
        network.cni.plugins = vec!["bridge".into(), "transship-cni".into()];
        network.cni.ipam = "host-local".into();
        network.cni.subnets = vec!["10.244.0.0/16".into()];
        let facts_json = serde_json::to_string(&facts).unwrap();
        Ok(Response::new(InspectReply { facts_json }))
    }

    async fn start_target(&self, r: Request<StartRequest>) -> Result<Response<StartReply>, Status> {
        let task = HolderTask::from_json(&r.into_inner().task_json)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        self.begin(task, Role::Target);
        Ok(Response::new(StartReply {}))
    }

    async fn start_source(&self, r: Request<StartRequest>) -> Result<Response<StartReply>, Status> {
        let task = HolderTask::from_json(&r.into_inner().task_json)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        self.begin(task, Role::Source);
        Ok(Response::new(StartReply {}))
    }

    async fn command(&self, r: Request<CommandRequest>) -> Result<Response<CommandReply>, Status> {
        let r = r.into_inner();
        let side = self.side(&r.migration_uid, r.role)?;
        match r.verb() {
            Verb::Freeze if side.status.borrow().stage() == Stage::Connected => {
                tokio::spawn(self.clone().freeze(r.migration_uid));
            }
            Verb::ReadDecision => {
                tokio::spawn(self.clone().read(r.migration_uid.clone(), r.role()));
            }
            Verb::Release => side.status.send_modify(|s| {
                s.stage = Stage::Released.into();
                s.closed = true;
            }),
            _ => {}
        }
        Ok(Response::new(CommandReply {}))
    }

    type WatchStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<SideStatus, Status>> + Send + 'static>>;

    async fn watch(&self, r: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let r = r.into_inner();
        let mut status = self.side(&r.migration_uid, r.role)?.status.subscribe();
        status.mark_changed();
        let stream = futures::stream::unfold(status, async |mut status| {
            status.changed().await.ok()?;
            let snapshot = status.borrow_and_update().clone();
            Some((Ok(snapshot), status))
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn forget(&self, r: Request<ForgetRequest>) -> Result<Response<ForgetReply>, Status> {
        let r = r.into_inner();
        if !self.side(&r.migration_uid, r.role)?.status.borrow().closed {
            return Err(Status::failed_precondition("not closed"));
        }
        self.sides.lock().unwrap().remove(&(r.migration_uid, r.role));
        Ok(Response::new(ForgetReply {}))
    }

    async fn lease_moved(
        &self,
        r: Request<LeaseMovedRequest>,
    ) -> Result<Response<LeaseMovedReply>, Status> {
        println!("lease moved: {:?}", r.into_inner());
        Ok(Response::new(LeaseMovedReply {}))
    }
}

/// Makes pods run, and lets deleted ones go.
async fn kubelet(fake: Fake, node: String) {
    let pods: Api<Pod> = Api::all(fake.client.clone());
    let own = ListParams::default().fields(&format!("spec.nodeName={node}"));
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let Ok(listed) = pods.list(&own).await else { continue };
        for pod in listed.items {
            let of_namespace: Api<Pod> =
                Api::namespaced(fake.client.clone(), &pod.namespace().unwrap());
            if pod.metadata.deletion_timestamp.is_some() {
                let now = DeleteParams { grace_period_seconds: Some(0), ..Default::default() };
                let _ = of_namespace.delete(&pod.name_any(), &now).await;
                continue;
            }
            // A target that is bound waits for its images.
            let uid = pod.uid().unwrap();
            let waiting: Vec<_> = fake
                .sides
                .lock()
                .unwrap()
                .iter()
                .filter(|((_, role), h)| *role == Role::Target as i32 && h.task.pod.uid == uid)
                .map(|(_, h)| h.clone())
                .collect();
            for holder in waiting {
                holder.status.send_if_modified(|s| {
                    let new = s.restored.is_empty() && s.waiting.is_empty() && !s.closed;
                    if new {
                        s.waiting = vec![holder.task.containers[0].name.clone()];
                    }
                    new
                });
            }
            report(&fake, &of_namespace, &pod).await;
        }
    }
}

async fn report(fake: &Fake, pods: &Api<Pod>, pod: &Pod) {
    let runs = fake.runs(pod);
    let old = pod.status.clone().unwrap_or_default();
    let conditions = old.conditions.clone().unwrap_or_default();
    let gates = pod.spec.as_ref().and_then(|s| s.readiness_gates.clone()).unwrap_or_default();
    let open = gates.iter().all(|gate| {
        conditions.iter().any(|c| c.type_ == gate.condition_type && c.status == "True")
    });
    let ready = runs && open;
    let was_ready = conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
    let has_ready = conditions.iter().any(|c| c.type_ == "Ready");
    let ran = old
        .container_statuses
        .iter()
        .flatten()
        .any(|c| c.state.as_ref().is_some_and(|s| s.running.is_some()));
    if has_ready && was_ready == ready && ran == runs {
        return;
    }
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap().to_string();
    let state = match (runs, ran) {
        (true, _) => json!({"running": {"startedAt": now}, "waiting": null}),
        (false, true) => json!({"running": null, "terminated": {"exitCode": 137}}),
        (false, false) => json!({"waiting": {"reason": "ContainerCreating"}}),
    };
    let containers: Vec<_> = pod
        .spec
        .as_ref()
        .unwrap()
        .containers
        .iter()
        .map(|c| {
            json!({
                "name": c.name, "image": c.image, "imageID": "sha256:abc", "ready": runs,
                "restartCount": 0, "state": state,
            })
        })
        .collect();
    let status = json!({"status": {
        "phase": if runs { "Running" } else { "Pending" },
        "podIP": "10.244.1.5", "podIPs": [{"ip": "10.244.1.5"}],
        "containerStatuses": containers,
        "conditions": [
            {"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": now},
            {"type": "ContainersReady", "status": if runs { "True" } else { "False" }, "lastTransitionTime": now},
        ],
    }});
    if let Err(error) =
        pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(status)).await
    {
        println!("{}: {error}", pod.name_any());
    }
}

async fn register(client: &Client, name: &str, port: u16) {
    let nodes: Api<CoreNode> = Api::all(client.clone());
    let node = serde_json::from_value(
        json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}}),
    )
    .unwrap();
    let _ = nodes.create(&PostParams::default(), &node).await;
    let status = json!({"status": {
        "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
        "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"},
        "conditions": [{"type": "Ready", "status": "True"}],
    }});
    nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    let ours: Api<api::Node> = Api::all(client.clone());
    let node = api::Node::new(name, api::NodeSpec::default());
    let _ = ours.create(&PostParams::default(), &node).await;
    loop {
        let now = Timestamp::now().to_string();
        let status = json!({"status": {
            "heartbeatTime": now,
            "criu": {"version": "4.2.1"}, "arch": "amd64",
            "agent": {"version": "0", "address": format!("127.0.0.1:{port}"),
                "dataAddress": format!("127.0.0.1:{}", port + 100), "hostSideState": "Installed"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "Available",
                "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        }});
        if let Err(error) =
            ours.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await
        {
            println!("{name}: {error}");
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

#[tokio::main]
async fn main() {
    rustls::crypto::aws_lc_rs::default_provider().install_default().unwrap();
    let mut args = std::env::args().skip(1);
    let namespace = args.next().expect("NAMESPACE");
    let client = Client::try_default().await.unwrap();
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    let secret = loop {
        match secrets.get(names::CA_SECRET).await {
            Ok(secret) => break secret,
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    };
    let data = secret.data.unwrap();
    let text = |key: &str| String::from_utf8(data[key].0.clone()).unwrap();
    let ca = text("tls.crt");
    let sides = Sides::default();
    for argument in args {
        let (node, port) = argument.split_once('=').expect("NODE=PORT");
        let (node, port) = (node.to_owned(), port.parse::<u16>().unwrap());
        let issuer =
            Issuer::from_ca_cert_pem(&ca, KeyPair::from_pem(&text("tls.key")).unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new([format!("{node}.node.transship.internal")])
            .unwrap()
            .signed_by(&key, &issuer)
            .unwrap();
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(cert.pem(), key.serialize_pem()))
            .client_ca_root(Certificate::from_pem(&ca));
        let fake = Fake {
            client: client.clone(),
            sides: sides.clone(),
            fault: std::env::var("FAULT").unwrap_or_default(),
        };
        tokio::spawn(kubelet(fake.clone(), node.clone()));
        let registered = client.clone();
        tokio::spawn(async move { register(&registered, &node, port).await });
        tokio::spawn(async move {
            Server::builder()
                .tls_config(tls)
                .unwrap()
                .add_service(AgentServer::new(fake))
                .serve(([127, 0, 0, 1], port).into())
                .await
                .unwrap();
        });
    }
    tokio::signal::ctrl_c().await.unwrap();
}
