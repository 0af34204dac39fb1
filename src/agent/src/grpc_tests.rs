//! The service against a temporary host and a stand-in for the holder.

use super::*;
use crate::args::Args;
use crate::hostns::HostNs;
use crate::migrations::tests::task;
use crate::runtime::Runtime;
use clap::Parser;
use tokio_stream::wrappers::UnixListenerStream;
use transship_api::node::HostSideState;
use transship_rpc::Stage;
use transship_rpc::agent_client::AgentClient;
use transship_rpc::holder_server::{Holder, HolderServer};

fn service() -> (tempfile::TempDir, Service) {
    let dir = tempfile::tempdir().unwrap();
    let host = HostRoot::at(dir.path());
    let args = Args::try_parse_from(["agent", "--node-name", "node-a"]).unwrap();
    let inspector = Inspector {
        host: host.clone(),
        hostns: HostNs::new(Path::new("/")),
        runtime: Runtime::new(&host, &args),
        kubelet_root: args.kubelet_root.clone(),
        cni_conf_dir: args.cni_conf_dir.clone(),
    };
    let (_, facts) = watch::channel(NodeFacts { name: "node-a".into(), ..NodeFacts::default() });
    let service = Service {
        node: "node-a".into(),
        kubelet_root: "/srv/kubelet".into(),
        leases: Leases {
            node: "node-a".into(),
            host: host.clone(),
            runtime: inspector.runtime.clone(),
            cni_conf_dir: inspector.cni_conf_dir.clone(),
        },
        host,
        inspector,
        facts,
        side: watch::channel(HostSide::default()).1,
        telemetry: Telemetry::new(),
        writing: Arc::default(),
        stop: CancellationToken::new(),
    };
    (dir, service)
}

fn json(task: &HolderTask) -> String {
    serde_json::to_string(task).unwrap()
}

#[test]
fn a_target_has_its_record_and_tickets_before_its_task() {
    let (_dir, service) = service();
    let task = task("m-1", Role::Target);
    service.start_target(&json(&task)).unwrap();
    let pod = service.host.pod("p-1").unwrap();
    let record = pod.read_record().unwrap().unwrap();
    assert_eq!((record.state, record.role), (RecordState::Restore, Role::Target));
    assert_eq!(record.migration_uid, "m-1");
    assert!(pod.has_ticket("web").unwrap());
    assert!(!pod.has_ticket("setup").unwrap(), "init containers are not restored");
    let migration = service.host.migration("m-1", Role::Target).unwrap();
    let written = migration.read_task().unwrap().unwrap();
    assert_eq!(written.kubelet_root, Path::new("/srv/kubelet"), "this node knows better");
}

#[test]
fn starting_again_changes_nothing() {
    let (_dir, service) = service();
    let task = task("m-1", Role::Target);
    service.start_target(&json(&task)).unwrap();
    let pod = service.host.pod("p-1").unwrap();
    pod.consume_ticket("web").unwrap();
    pod.set_state(RecordState::Held).unwrap();
    service.start_target(&json(&task)).unwrap();
    assert!(!pod.has_ticket("web").unwrap());
    assert_eq!(pod.read_record().unwrap().unwrap().state, RecordState::Held);
    // A crash between record and task: the call is repeated and finishes.
    let migration = service.host.migration("m-1", Role::Target).unwrap();
    std::fs::remove_file(migration.task()).unwrap();
    service.start_target(&json(&task)).unwrap();
    assert!(migration.read_task().unwrap().is_some());
    assert!(!pod.has_ticket("web").unwrap(), "a used ticket is not renewed");
}

#[test]
fn a_task_that_does_not_belong_here_is_refused_in_a_sentence() {
    let (_dir, service) = service();
    let target = task("m-1", Role::Target);
    let cases: [(&str, HolderTask, bool); 3] = [
        ("this call is for the source", target.clone(), false),
        (
            "the task is for node node-z",
            HolderTask { node: "node-z".into(), ..target.clone() },
            true,
        ),
        ("containers", HolderTask { containers: Vec::new(), ..target.clone() }, true),
    ];
    for (expected, task, as_target) in cases {
        let result = if as_target {
            service.start_target(&json(&task))
        } else {
            service.start_source(&json(&task))
        };
        let error = result.unwrap_err();
        assert!(error.message().contains(expected), "{}", error.message());
        assert_eq!(error.code(), Code::InvalidArgument);
    }
    assert!(!service.host.pods().exists() && !service.host.migrations().exists());
}

#[test]
fn while_the_host_side_is_being_removed_nothing_is_started() {
    let (_dir, mut service) = service();
    service.start_source(&json(&task("m-1", Role::Source))).unwrap();
    for state in [HostSideState::Removing, HostSideState::Removed] {
        service.side = watch::channel(HostSide { state, ..HostSide::default() }).1;
        let mut other = task("m-2", Role::Target);
        other.pod.uid = "p-2".into();
        let error = service.start_target(&json(&other)).unwrap_err();
        assert_eq!(error.code(), Code::Unavailable, "it is tried again: {error}");
        assert!(!service.host.pod("p-2").unwrap().path().exists());
        service.start_source(&json(&task("m-1", Role::Source))).unwrap();
    }
}

#[tokio::test]
async fn a_start_whose_caller_has_gone_keeps_its_turn() {
    let (_dir, service) = service();
    let (begun, has_begun) = std::sync::mpsc::channel();
    let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
    let working = service.clone();
    let call = tokio::spawn(async move {
        let work = move |_: &Service| {
            begun.send(()).unwrap();
            goes_on.recv().unwrap();
            Ok(())
        };
        working.writing(work).await
    });
    tokio::task::spawn_blocking(move || has_begun.recv().unwrap()).await.unwrap();
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    assert!(service.writing.try_lock().is_err(), "a removal would not wait for it");
    go_on.send(()).unwrap();
    drop(service.writing.lock().await);
}

#[test]
fn a_pod_takes_part_in_one_migration_at_a_time() {
    let (_dir, service) = service();
    service.start_source(&json(&task("m-1", Role::Source))).unwrap();
    let error = service.start_source(&json(&task("m-2", Role::Source))).unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    service.host.migration("m-1", Role::Source).unwrap().close().unwrap();
    service.start_source(&json(&task("m-2", Role::Source))).unwrap();
}

#[test]
fn only_a_closed_side_is_forgotten() {
    let (_dir, service) = service();
    service.start_source(&json(&task("m-1", Role::Source))).unwrap();
    assert_eq!(service.forget("m-1", Role::Source).unwrap_err().code(), Code::FailedPrecondition);
    let migration = service.host.migration("m-1", Role::Source).unwrap();
    migration.close().unwrap();
    service.forget("m-1", Role::Source).unwrap();
    assert!(!migration.path().exists());
    service.forget("m-1", Role::Source).unwrap();
}

/// A holder that says two things and then ends, as a crashed one does.
struct Brief;

#[tonic::async_trait]
impl Holder for Brief {
    async fn command(&self, _: Request<CommandRequest>) -> Result<Response<CommandReply>> {
        Ok(Response::new(CommandReply {}))
    }
    type WatchStream = Pin<Box<dyn Stream<Item = Result<SideStatus>> + Send + 'static>>;
    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>> {
        let request = request.into_inner();
        let said = [Stage::Connected, Stage::Frozen].map(|stage| {
            Ok(SideStatus {
                migration_uid: request.migration_uid.clone(),
                role: request.role,
                stage: stage as i32,
                pod_uid: "p-1".into(),
                ..SideStatus::default()
            })
        });
        Ok(Response::new(Box::pin(futures::stream::iter(said))))
    }
}

#[tokio::test]
async fn a_watch_outlives_its_holder_and_ends_with_the_closed_status() {
    let (_dir, service) = service();
    service.start_source(&json(&task("m-1", Role::Source))).unwrap();
    let run = service.host.holder("m-1", Role::Source).unwrap();
    std::fs::create_dir_all(run.path()).unwrap();
    let listener = UnixListener::bind(run.control()).unwrap();
    let holder = tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(HolderServer::new(Brief))
            .serve_with_incoming(UnixListenerStream::new(listener)),
    );
    let (to, mut stream) = mpsc::channel(8);
    let request =
        WatchRequest { migration_uid: "m-1".into(), role: transship_rpc::Role::Source as i32 };
    let watching = service.clone();
    tokio::spawn(async move { watching.relay_status(request, &to).await });
    let mut stages = Vec::new();
    while stages.last() != Some(&(Stage::Frozen as i32)) {
        stages.push(stream.recv().await.unwrap().unwrap().stage);
    }
    assert_eq!(stages[..2], [Stage::Started as i32, Stage::Connected as i32]);
    holder.abort();
    // Its last word is on disk, and it is done.
    let migration = service.host.migration("m-1", Role::Source).unwrap();
    let last =
        SideStatus { stage: Stage::Aborted as i32, pod_uid: "p-1".into(), ..Default::default() };
    files::write_json(&migration.path().join("status.json"), &last).unwrap();
    migration.close().unwrap();
    let mut end = None;
    while let Some(status) = stream.recv().await {
        end = Some(status.unwrap());
    }
    let end = end.unwrap();
    assert!(end.closed);
    assert_eq!(end.stage, Stage::Aborted as i32);
}

#[tokio::test]
async fn a_watch_of_what_was_forgotten_ends_with_not_found() {
    let (_dir, service) = service();
    service.start_source(&json(&task("m-1", Role::Source))).unwrap();
    let (to, mut stream) = mpsc::channel(8);
    let request =
        WatchRequest { migration_uid: "m-1".into(), role: transship_rpc::Role::Source as i32 };
    let watching = service.clone();
    tokio::spawn(async move { watching.relay_status(request, &to).await });
    assert!(stream.recv().await.unwrap().is_ok());
    let migration = service.host.migration("m-1", Role::Source).unwrap();
    std::fs::remove_dir_all(migration.path()).unwrap();
    assert_eq!(stream.recv().await.unwrap().unwrap_err().code(), Code::NotFound);
    assert!(stream.recv().await.is_none());
}

#[tokio::test]
async fn only_the_operator_is_let_in() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let authority = crate::tls::testing::Authority::new();
    let (_dir, service) = service();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (_, tls) = watch::channel(Some(authority.tls("node-a.node.transship.internal")));
    let stop = service.stop.clone();
    let serving = tokio::spawn(serve(service, listener, tls));
    let call = async |name: &str| {
        let (chain, key) = authority.issue(name);
        let tls = tonic::transport::ClientTlsConfig::new()
            .ca_certificate(tonic::transport::Certificate::from_pem(&authority.pem))
            .identity(tonic::transport::Identity::from_pem(chain, key))
            .domain_name("node-a.node.transship.internal");
        let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}"))
            .unwrap()
            .tls_config(tls)
            .unwrap();
        let mut client = AgentClient::new(endpoint.connect().await?);
        let reply = client.inspect(InspectRequest::default()).await?;
        anyhow::Ok(reply.into_inner().facts_json)
    };
    let facts = call(tls::OPERATOR_NAME).await.unwrap();
    let facts = transship_core::facts::PodFacts::from_json(&facts).unwrap();
    assert_eq!(facts.node.name, "node-a");
    assert!(call("node-b.node.transship.internal").await.is_err());
    assert!(call("operator.transship.internal.example.com").await.is_err());
    stop.cancel();
    serving.await.unwrap().unwrap();
}
