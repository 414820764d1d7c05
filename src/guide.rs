//! Guides: how to use the crate, step by step. They exist in the documentation only.
//!
//! The same texts are in the folder `docs` of the repository.

/// Where the links between guides lead. In the files themselves they lead to the other files; the first definition of a link counts.
macro_rules! links {
    () => {
        concat!(
            "[axum]: crate::guide::axum\n",
            "[configuration]: crate::guide::configuration\n",
            "[csrf]: crate::guide::csrf\n",
            "[deployment]: crate::guide::deployment\n",
            "[health-and-metrics]: crate::guide::health_and_metrics\n",
            "[hyper]: crate::guide::hyper\n",
            "[jwt]: crate::guide::jwt\n",
            "[key-value-store]: crate::guide::key_value_store\n",
            "[migrating-from-actix-session-and-axum-session]: crate::guide::migrating_from_actix_session_and_axum_session\n",
            "[migrating-from-express-session]: crate::guide::migrating_from_express_session\n",
            "[migrating-from-tower-sessions]: crate::guide::migrating_from_tower_sessions\n",
            "[oauth-login]: crate::guide::oauth_login\n",
            "[operator-page]: crate::guide::operator_page\n",
            "[outages]: crate::guide::outages\n",
            "[security-model]: crate::guide::security_model\n",
            "[single-use-links]: crate::guide::single_use_links\n",
            "[testing-your-app]: crate::guide::testing_your_app\n",
            "[tonic]: crate::guide::tonic\n",
            "[users-and-devices]: crate::guide::users_and_devices\n",
            "[writing-a-store]: crate::guide::writing_a_store\n",
        )
    };
}

macro_rules! guides {
    ($($name:ident: $file:literal)*) => {
        $(
            #[doc = links!()]
            #[doc = ""]
            #[doc = include_str!(concat!("../docs/", $file))]
            pub mod $name {}
        )*
    };
}

guides! {
    axum: "axum.md"
    configuration: "configuration.md"
    csrf: "csrf.md"
    deployment: "deployment.md"
    health_and_metrics: "health-and-metrics.md"
    hyper: "hyper.md"
    jwt: "jwt.md"
    key_value_store: "key-value-store.md"
    migrating_from_actix_session_and_axum_session: "migrating-from-actix-session-and-axum-session.md"
    migrating_from_express_session: "migrating-from-express-session.md"
    migrating_from_tower_sessions: "migrating-from-tower-sessions.md"
    oauth_login: "oauth-login.md"
    operator_page: "operator-page.md"
    outages: "outages.md"
    security_model: "security-model.md"
    single_use_links: "single-use-links.md"
    testing_your_app: "testing-your-app.md"
    tonic: "tonic.md"
    users_and_devices: "users-and-devices.md"
    writing_a_store: "writing-a-store.md"
}
