//! `POST /v1/certificates`: an agent shows its projected token and a request, and gets a
//! certificate for the node that the API server says the token is bound to.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use transship_api::names;

use super::node_name;
use super::serving::Identity;

/// Claim with the node that a token's pod runs on.
const NODE_CLAIM: &str = "authentication.kubernetes.io/node-name";
/// No request is longer.
pub const MAX_REQUEST: usize = 16 * 1024;

/// What the handler needs.
#[derive(Clone)]
pub struct Issuer {
    /// Asks for reviews.
    pub client: Client,
    /// The operator's (and the agents') namespace.
    pub namespace: String,
    /// The authority.
    pub identity: watch::Receiver<Option<Identity>>,
}

type Answer = Result<String, (StatusCode, String)>;

/// The handler.
pub async fn issue(State(issuer): State<Arc<Issuer>>, headers: HeaderMap, body: String) -> Answer {
    let answer = handle(&issuer, &headers, &body).await;
    match &answer {
        Ok(_) => {}
        Err((status, message)) => tracing::warn!(%status, message, "refused a certificate"),
    }
    answer
}

async fn handle(issuer: &Issuer, headers: &HeaderMap, body: &str) -> Answer {
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .ok_or((StatusCode::UNAUTHORIZED, "show a token as 'Authorization: Bearer …'".into()))?;
    let review = TokenReview {
        spec: TokenReviewSpec {
            token: token.to_owned(),
            audiences: Some(vec![names::AUDIENCE.into()]),
        },
        ..TokenReview::default()
    };
    let reviews: Api<TokenReview> = Api::all(issuer.client.clone());
    let reviewed = reviews
        .create(&PostParams::default(), &review)
        .await
        .map_err(|error| (StatusCode::SERVICE_UNAVAILABLE, format!("no review: {error}")))?;
    let account = format!("system:serviceaccount:{}:{}", issuer.namespace, names::AGENT);
    let node = node_of(reviewed.status.as_ref(), &account)
        .map_err(|message| (StatusCode::FORBIDDEN, message))?;
    let identity = issuer.identity.borrow().clone();
    let identity = identity
        .ok_or((StatusCode::SERVICE_UNAVAILABLE, "the authority is not ready yet".into()))?;
    let cert = identity
        .authority
        .sign(body, &node_name(&node), SystemTime::now())
        .map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
    tracing::info!(node, "issued a certificate");
    Ok(cert)
}

/// The node to which a reviewed token is bound, if it is the agents' account's.
fn node_of(status: Option<&TokenReviewStatus>, account: &str) -> Result<String, String> {
    let status = status.ok_or("the token was not reviewed")?;
    if status.authenticated != Some(true) {
        let error = status.error.as_deref().unwrap_or("it is not valid");
        return Err(format!("the token was not accepted: {error}"));
    }
    if !status.audiences.iter().flatten().any(|a| a == names::AUDIENCE) {
        return Err(format!("the token is not for the audience {}", names::AUDIENCE));
    }
    let user = status.user.as_ref().ok_or("the token has no user")?;
    let name = user.username.as_deref().unwrap_or_default();
    if name != account {
        return Err(format!("certificates are for {account}, not for {name}"));
    }
    user.extra
        .as_ref()
        .and_then(|extra| extra.get(NODE_CLAIM))
        .and_then(|nodes| nodes.first())
        .filter(|node| !node.is_empty())
        .cloned()
        .ok_or_else(|| "the token is not bound to a node".to_owned())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    const ACCOUNT: &str = "system:serviceaccount:transship:transship-agent";

    fn review(change: Value) -> TokenReviewStatus {
        let mut status = json!({
            "authenticated": true,
            "audiences": ["transship"],
            "user": {"username": ACCOUNT, "extra": {NODE_CLAIM: ["node-a"]}},
        });
        for (key, value) in change.as_object().unwrap() {
            status[key] = value.clone();
        }
        serde_json::from_value(status).unwrap()
    }

    #[test]
    fn the_node_comes_from_the_api_server() {
        assert_eq!(node_of(Some(&review(json!({}))), ACCOUNT), Ok("node-a".into()));
    }

    #[rstest]
    #[case(json!({"authenticated": false}))]
    #[case(json!({"audiences": ["https://kubernetes.default.svc"]}))]
    #[case(json!({"user": {"username": "system:serviceaccount:other:transship-agent",
        "extra": {NODE_CLAIM: ["node-a"]}}}))]
    #[case(json!({"user": {"username": ACCOUNT, "extra": {}}}))]
    #[case(json!({"user": {"username": ACCOUNT, "extra": {NODE_CLAIM: [""]}}}))]
    fn nobody_else_gets_a_certificate(#[case] change: Value) {
        assert!(node_of(Some(&review(change)), ACCOUNT).is_err());
    }
}
