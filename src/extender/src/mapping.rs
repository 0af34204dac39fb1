//! From Kubernetes' objects to questions; what the engine needs of them is decided in
//! `transship_core::placement::kubernetes`.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use transship_core::placement::kubernetes::{self, Asked};
use transship_core::placement::{policy, prepare, volumes};

use crate::state::{Question, State};
use crate::waiting::PodName;
use crate::wire::BEST;

/// What a pod asks for, its policy included; an error is the reason why its annotations or
/// the policy cannot be obeyed.
pub fn question(pod: &Pod, state: &State) -> Result<Question, String> {
    let policy = policy::applying(state.policies.values(), pod);
    let Asked { mut request, mut options, .. } =
        kubernetes::asked(pod, policy, None).map_err(|error| error.to_string())?;
    request.claims =
        volumes::claims(pod).filter(|claim| state.for_one_node.contains(claim)).collect();
    // Nobody else gets a score.
    options.ordered = BEST as usize;
    Ok(Question {
        pod: name(pod),
        container: kubernetes::container(pod),
        request: prepare(&request, &options),
        said: said(pod).map(str::to_owned),
    })
}

/// The pod as the API names it.
pub fn name(pod: &Pod) -> PodName {
    PodName {
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
    }
}

/// Why the pod has no node, as its scheduler wrote it down.
pub fn said(pod: &Pod) -> Option<&str> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let scheduled = conditions.iter().find(|c| c.type_ == "PodScheduled")?;
    scheduled.message.as_deref().filter(|_| scheduled.status == "False")
}
