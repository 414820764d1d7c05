//! Guides: how to use the crate, step by step. They exist in the documentation only.
//!
//! The same texts are in the folder `docs` of the repository.

// A guide links to another by its file name. Here the link leads to the module.
macro_rules! guides {
    ($($name:ident: $file:literal)*) => {
        $(
            #[doc = include_str!(concat!("../docs/", $file, ".md"))]
            pub mod $name {}
        )*
    };
}

guides! {
    csrf: "csrf"
    migrating_from_actix_session_and_axum_session: "migrating-from-actix-session-and-axum-session"
    migrating_from_express_session: "migrating-from-express-session"
    migrating_from_tower_sessions: "migrating-from-tower-sessions"
    oauth_login: "oauth-login"
    security_model: "security-model"
    testing_your_app: "testing-your-app"
    writing_a_store: "writing-a-store"
}
