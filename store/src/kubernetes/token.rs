//! Whose a ServiceAccount token is: what a TokenReview (`authentication.k8s.io/v1`) says, read strictly.

use api::names::TOKEN_AUDIENCE;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};

use super::answer;
use crate::Error;
use crate::backend::TokenOwner;

/// How the API server names ServiceAccounts among its users.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
/// Where the API server says on which node the pod is that a token is bound to (since Kubernetes 1.32).
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Asks the API server.
pub(super) async fn review(client: &Client, token: &str) -> Result<TokenOwner, Error> {
    let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]) };
    let review = TokenReview { spec, ..TokenReview::default() };
    let reviewed = Api::<TokenReview>::all(client.clone()).create(&PostParams::default(), &review).await;
    match reviewed {
        Ok(reviewed) => owner(reviewed.status.unwrap_or_default()),
        Err(kube::Error::Api(status)) if status.code == 403 => Err(Error::Forbidden(format!(
            "the controller may not have tokens reviewed, let its role create tokenreviews: {}",
            status.message
        ))),
        // What it does not take for a token at all.
        Err(kube::Error::Api(status)) if [400, 422].contains(&status.code) => {
            Err(Error::Forbidden(status.message.clone()))
        }
        Err(error) => Err(Error::Unavailable(answer::sentence(&error))),
    }
}

/// What a review says.
fn owner(status: TokenReviewStatus) -> Result<TokenOwner, Error> {
    if status.authenticated != Some(true) {
        let why = status.error.filter(|why| !why.is_empty());
        return Err(Error::Forbidden(why.unwrap_or_else(|| "the API server does not know the token".into())));
    }
    // A server that knows nothing of audiences would take any token of the cluster for one of ours.
    if !status.audiences.iter().flatten().any(|audience| audience == TOKEN_AUDIENCE) {
        return Err(Error::Forbidden(format!("the token is not for the audience '{TOKEN_AUDIENCE}'")));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let Some((namespace, service_account)) =
        name.strip_prefix(SERVICE_ACCOUNT).and_then(|account| account.split_once(':'))
    else {
        return Err(Error::Forbidden(format!("'{}' is no ServiceAccount", name.escape_debug())));
    };
    let node = user.extra.unwrap_or_default().remove(NODE_NAME).and_then(|names| names.into_iter().next());
    Ok(TokenOwner { namespace: namespace.to_owned(), service_account: service_account.to_owned(), node })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn said(status: Value) -> Result<TokenOwner, String> {
        owner(serde_json::from_value(status).unwrap()).map_err(|error| error.to_string())
    }

    fn agent() -> Value {
        json!({
            "authenticated": true,
            "audiences": ["tombolo.dev"],
            "user": {
                "username": "system:serviceaccount:tombolo-system:tombolo-node",
                "extra": {"authentication.kubernetes.io/node-name": ["worker"]},
            },
        })
    }

    #[test]
    fn a_token_of_ours_has_a_service_account_and_a_node() {
        let owner = said(agent()).unwrap();
        assert_eq!((&*owner.namespace, &*owner.service_account), ("tombolo-system", "tombolo-node"));
        assert_eq!(owner.node.as_deref(), Some("worker"));
        let mut unbound = agent();
        unbound["user"].as_object_mut().unwrap().remove("extra");
        assert_eq!(said(unbound).unwrap().node, None);
    }

    #[test]
    fn a_token_that_is_unknown_or_for_others_or_no_service_accounts_is_refused() {
        let refused = |change: &dyn Fn(&mut Value)| {
            let mut status = agent();
            change(&mut status);
            said(status).unwrap_err()
        };
        assert!(refused(&|status| status["authenticated"] = json!(false)).contains("does not know the token"));
        assert!(
            refused(&|status| *status = json!({"authenticated": false, "error": "it has expired"})).contains("expired")
        );
        assert!(refused(&|status| status["audiences"] = json!(["https://kubernetes"])).contains("audience"));
        assert!(refused(&|status| drop(status.as_object_mut().unwrap().remove("audiences"))).contains("audience"));
        for user in ["admin", "system:node:worker", "system:serviceaccount:alone", ""] {
            assert!(
                refused(&|status| status["user"]["username"] = json!(user)).contains("no ServiceAccount"),
                "{user}"
            );
        }
    }

    proptest! {
        #[test]
        fn only_names_of_service_accounts_are_taken(name in "(system:|serviceaccount:|[a-z:]){0,6}") {
            let mut status = agent();
            status["user"]["username"] = json!(name);
            prop_assert_eq!(said(status).is_ok(), name.starts_with(SERVICE_ACCOUNT) && name[SERVICE_ACCOUNT.len()..].contains(':'));
        }
    }
}
