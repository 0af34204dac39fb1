//! containerd's tasks, of which the CRI says nothing.
//!
//! A task is what containerd has of a container between runc's `create` and `delete` of it. The CRI makes it in
//! `StartContainer`, and has it deleted before it calls the container ended. But when the caller goes just as the task
//! has been made (kubelet dies, or its patience is over), the CRI gives up, calls the container ended and leaves the
//! task. From then on containerd refuses to remove the container, however often kubelet asks, and all that hangs on it
//! stays until containerd restarts: its bundle, snapshot and mounts, and the shim of its sandbox. So the task is
//! deleted by containerd's own API, at the same socket.
//!
//! Only that of a container which has ended by the CRI's word: such a one is never started again, and as a rule it has
//! no task. Until then a task may be one that is about to be started, and whoever asks for its deletion closes its
//! output and unmounts its root, even where the deletion is refused.

use prost::Message;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::Result;
use crate::cri::{Cri, call};

/// The method, as it is called.
const DELETE: &str = "/containerd.services.tasks.v1.Tasks/Delete";
/// Header that names the namespace of whatever a call is about.
const NAMESPACE: &str = "containerd-namespace";
/// The CRI's.
const OF_CRI: &str = "k8s.io";

/// containerd's message of this name.
#[derive(Clone, PartialEq, Message)]
struct DeleteTaskRequest {
    #[prost(string, tag = "1")]
    container_id: String,
}

/// containerd's message of this name. How the process had ended is of no interest here.
#[derive(Clone, PartialEq, Message)]
struct DeleteResponse {}

impl Cri {
    /// Has containerd delete the task of a container that has ended ([`crate::cri::State::Exited`]). `false`: there is
    /// none. May be done again, also where it broke off.
    pub async fn delete_task(&self, container_id: &str) -> Result<bool> {
        let container_id = container_id.to_owned();
        let mut request = Request::new(DeleteTaskRequest { container_id });
        request.metadata_mut().insert(NAMESPACE, MetadataValue::from_static(OF_CRI));
        let codec = ProstCodec::<DeleteTaskRequest, DeleteResponse>::default();
        let mut client = Grpc::new(self.channel.clone());
        let reply = match client.ready().await {
            Ok(()) => client.unary(request, PathAndQuery::from_static(DELETE), codec).await,
            Err(error) => Err(Status::unavailable(error.to_string())),
        };
        match reply {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(call("Tasks.Delete")(status)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tokio::net::UnixListener;
    use tokio_stream::wrappers::UnixListenerStream;
    use tonic::Response;
    use tonic::body::Body;
    use tonic::codegen::{BoxFuture, Context, Poll, Service, http};
    use tonic::server::{NamedService, UnaryService};
    use tonic::transport::Server;

    use super::*;

    /// containerd's service, with one task that is left and one that runs.
    #[derive(Clone)]
    struct Tasks;

    impl NamedService for Tasks {
        const NAME: &'static str = "containerd.services.tasks.v1.Tasks";
    }

    impl Service<http::Request<Body>> for Tasks {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = BoxFuture<Self::Response, Infallible>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<Body>) -> Self::Future {
            assert!(request.uri().path().ends_with("/Delete"), "{}", request.uri());
            Box::pin(async move {
                let codec = ProstCodec::<FullResponse, DeleteTaskRequest>::default();
                Ok(tonic::server::Grpc::new(codec).unary(Delete, request).await)
            })
        }
    }

    /// containerd's answer, some of it.
    #[derive(Clone, PartialEq, Message)]
    struct FullResponse {
        #[prost(uint32, tag = "2")]
        pid: u32,
        #[prost(uint32, tag = "3")]
        exit_status: u32,
    }

    struct Delete;

    impl UnaryService<DeleteTaskRequest> for Delete {
        type Response = FullResponse;
        type Future = BoxFuture<Response<FullResponse>, Status>;

        fn call(&mut self, request: Request<DeleteTaskRequest>) -> Self::Future {
            let namespace = request.metadata().get("containerd-namespace");
            let namespace = namespace.and_then(|name| name.to_str().ok());
            let answer = match request.get_ref().container_id.as_str() {
                _ if namespace != Some("k8s.io") => {
                    Err(Status::failed_precondition("namespace is required"))
                }
                "left" => Ok(Response::new(FullResponse { pid: 7, exit_status: 137 })),
                "runs" => Err(Status::unknown("cannot delete a running process")),
                id => Err(Status::not_found(format!("task {id} not found"))),
            };
            Box::pin(std::future::ready(answer))
        }
    }

    #[tokio::test]
    async fn a_task_is_deleted_where_there_is_one_and_a_refusal_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("containerd.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let serving = Server::builder()
            .add_service(Tasks)
            .serve_with_incoming(UnixListenerStream::new(listener));
        tokio::spawn(serving);
        let cri = Cri::connect(&socket).await.unwrap();
        assert!(cri.delete_task("left").await.unwrap());
        assert!(!cri.delete_task("none").await.unwrap());
        let refused = cri.delete_task("runs").await.unwrap_err().to_string();
        assert!(refused.ends_with("cannot delete a running process"), "{refused}");
    }
}
