//! Parses the query. Every page has the same path, so the page can be mounted anywhere.

use form_urlencoded::Serializer;

use crate::{store::Cursor, token::SessionId};

/// The maximum length of a cursor.
const MAX_CURSOR: usize = 256;

/// The content of a page.
#[derive(Clone, PartialEq)]
pub(super) enum View {
    /// All sessions, from a cursor.
    All(Cursor),
    /// The sessions of a user.
    User(String),
    One(SessionId),
    /// The search string is not a session id.
    NoId(String),
}

/// The action of a form.
pub(super) enum Act {
    Revoke(SessionId),
    RevokeUser(String),
}

/// The result of an action, shown on the next page.
#[derive(Clone, Copy)]
pub(super) enum Done {
    Revoked,
    /// The session had ended before.
    WasGone,
    /// The number of ended sessions of a user.
    UserRevoked(usize),
}

/// The parameters of a query. The first of several counts.
pub(super) struct Query {
    pub(super) view: View,
    pub(super) done: Option<Done>,
    pub(super) act: Option<Act>,
    /// The style sheet.
    pub(super) style: bool,
    /// Count the sessions, without a time limit.
    pub(super) count: bool,
}

impl Query {
    pub(super) fn of(query: &str) -> Self {
        let get = |name: &str| {
            form_urlencoded::parse(query.as_bytes()).find(|(given, _)| given == name).map(|(_, value)| value)
        };
        let id = |name: &str| get(name).map(|text| text.trim().parse().map_err(|_| text.into_owned()));
        let view = match (id("id"), get("user").filter(|user| !user.is_empty()), get("from")) {
            (Some(Ok(id)), ..) => View::One(id),
            (Some(Err(text)), ..) => View::NoId(text),
            (None, Some(user), _) => View::User(user.into_owned()),
            (None, None, Some(from)) if from.len() <= MAX_CURSOR => View::All(Cursor::from(from.into_owned())),
            (None, None, _) => View::All(Cursor::start()),
        };
        let done = match get("done").as_deref() {
            Some("revoked") => Some(Done::Revoked),
            Some("gone") => Some(Done::WasGone),
            Some("user") => get("n").and_then(|number| number.parse().ok()).map(Done::UserRevoked),
            _ => None,
        };
        let act = match (id("revoke"), get("revoke_user")) {
            (Some(Ok(id)), _) => Some(Act::Revoke(id)),
            (None, Some(user)) => Some(Act::RevokeUser(user.into_owned())),
            _ => None,
        };
        Self { view, done, act, style: get("style").is_some(), count: get("count").is_some() }
    }
}

impl View {
    fn parameter(&self) -> Option<(&'static str, String)> {
        match self {
            Self::All(from) if from.as_str().is_empty() => None,
            Self::All(from) => Some(("from", from.as_str().to_owned())),
            Self::User(user) => Some(("user", user.clone())),
            Self::One(id) => Some(("id", id.to_string())),
            Self::NoId(text) => Some(("id", text.clone())),
        }
    }

    /// The reference to this view.
    pub(super) fn link(&self) -> String {
        reference([self.parameter()])
    }

    /// The reference to this view after an action.
    pub(super) fn after(&self, done: Done) -> String {
        let (done, number) = match done {
            Done::Revoked => ("revoked", None),
            Done::WasGone => ("gone", None),
            Done::UserRevoked(number) => ("user", Some(("n", number.to_string()))),
        };
        reference([self.parameter(), Some(("done", done.to_owned())), number])
    }

    /// The reference that performs an action and returns to this view.
    pub(super) fn doing(&self, act: &Act) -> String {
        let act = match act {
            Act::Revoke(id) => ("revoke", id.to_string()),
            Act::RevokeUser(user) => ("revoke_user", user.clone()),
        };
        reference([Some(act), self.parameter()])
    }
}

/// Relative to any path.
fn reference<const N: usize>(parameters: [Option<(&str, String)>; N]) -> String {
    Serializer::for_suffix("?".to_owned(), 1).extend_pairs(parameters.into_iter().flatten()).finish()
}
