//! Renders the page.

use std::{fmt, time::Duration};

use maud::{DOCTYPE, Markup, html};

use super::{
    query::{Act, Done, View},
    visible::{is_deceptive, visible},
};
use crate::{
    ended::Ended,
    health::HealthReport,
    observe::Stats,
    sessions::SessionInfo,
    store::{Cursor, FallbackStats, health::HealthStatus},
    time::Timestamp,
    token::SessionId,
};

/// The maximum number of sessions of a user that are shown.
pub(super) const MAX_OF_USER: usize = 500;
/// The maximum number of characters of a name and a user agent in a table.
const SHORT_NAME: usize = 40;
const SHORT_AGENT: usize = 60;

pub(super) struct Page {
    pub(super) health: HealthReport,
    pub(super) stats: Stats,
    pub(super) fallback: Option<FallbackStats>,
    pub(super) now: Timestamp,
    pub(super) content: Content,
}

/// The content below the health.
pub(super) enum Content {
    All {
        from: Cursor,
        sessions: Vec<SessionInfo>,
        next: Option<Cursor>,
        live: Option<Live>,
        done: Option<Done>,
    },
    User {
        user: String,
        sessions: Vec<SessionInfo>,
        number: usize,
        done: Option<Done>,
    },
    One {
        session: SessionInfo,
        done: Option<Done>,
    },
    Gone {
        id: SessionId,
        ended: Option<Ended>,
        done: Option<Done>,
    },
    NoId {
        text: String,
    },
    /// The store is unavailable.
    Failed {
        view: View,
    },
    NotFromHere,
    NothingToDo,
}

/// The number of live sessions.
#[derive(Clone, Copy)]
pub(super) enum Live {
    Counted(u64),
    /// Counting takes too long.
    Many,
}

impl Page {
    pub(super) fn html(&self) -> String {
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="robots" content="noindex";
                    meta name="color-scheme" content="light dark";
                    title { (self.title()) }
                    link rel="stylesheet" href={ "?style=" (env!("CARGO_PKG_VERSION")) };
                }
                body {
                    header {
                        a.home href="?" { "Sessions" }
                        (self.status())
                    }
                    main {
                        (self.search())
                        (self.content())
                    }
                    footer { (self.counted()) }
                }
            }
        };
        visible(&page.into_string())
    }

    fn title(&self) -> &'static str {
        match &self.content {
            Content::All { .. } => "Sessions",
            Content::User { .. } => "Sessions of a user",
            Content::One { .. } | Content::Gone { .. } => "A session",
            Content::NoId { .. } => "Not a session id",
            Content::Failed { .. } => "The store is unavailable",
            Content::NotFromHere | Content::NothingToDo => "Nothing was done",
        }
    }

    fn status(&self) -> Markup {
        let health = &self.health;
        let status = match health.status {
            HealthStatus::Up => "up",
            HealthStatus::Degraded => "degraded",
            HealthStatus::Down => "down",
        };
        html! {
            section class={ "health " (status) } aria-label="Health of the store" {
                p {
                    strong { (status) } " "
                    span { "store " b { (health.store) } } " "
                    span { "since " (self.time(health.since)) } " "
                    span { "answered in " b { (Millis(health.latency)) } }
                }
                @if let Some(cause) = &health.cause {
                    p.cause { (cause) }
                }
                @if let Some(fallback) = self.fallback {
                    p.fallback {
                        "fallback: " b { @if fallback.using_fallback { "in use" } @else { "not in use" } } ", "
                        (Counted(fallback.in_memory as u64, "session", "sessions")) " in memory, "
                        (fallback.cached) " cached, " (fallback.journalled) " changes waiting; since the start "
                        (Counted(fallback.outages, "outage", "outages")) ", " (fallback.replayed) " replayed, "
                        (fallback.dropped) " dropped, " (fallback.refused) " refused"
                    }
                }
            }
        }
    }

    fn search(&self) -> Markup {
        let (user, id) = match &self.content {
            Content::User { user, .. } => (user.as_str(), String::new()),
            Content::One { session, .. } => ("", session.id().to_string()),
            Content::Gone { id, .. } => ("", id.to_string()),
            Content::NoId { text } => ("", text.clone()),
            _ => ("", String::new()),
        };
        html! {
            div.search role="search" {
                (field("user", "User", user))
                (field("id", "Session id", &id))
            }
        }
    }

    fn content(&self) -> Markup {
        match &self.content {
            Content::All { from, sessions, next, live, done } => html! {
                h1 { "Live sessions" }
                (message(*done))
                @match live {
                    Some(Live::Counted(number)) => p { (Counted(*number, "session", "sessions")) " in total." },
                    Some(Live::Many) => p {
                        "There are too many sessions to count quickly. "
                        a href="?count" { "Count them" } ", which may take a minute."
                    },
                    None => {}
                }
                @let none = if next.is_some() { "None on this page." } else { "None." };
                (self.table(sessions, &View::All(from.clone()), none))
                (paging(from, next.as_ref()))
            },
            Content::User { user, sessions, number, done } => html! {
                h1 { "Sessions of " bdi { (user) } }
                (message(*done))
                @if *number > sessions.len() {
                    p { (MAX_OF_USER) " of " (number) ", newest first." }
                }
                (self.table(sessions, &View::User(user.clone()), "No live sessions."))
                // Even if none is listed: sessions that the index has lost end too.
                form method="post" class="all" action=(View::User(user.clone()).doing(&Act::RevokeUser(user.clone()))) {
                    button.danger { "Revoke all sessions of " bdi { (user) } }
                }
            },
            Content::One { session, done } => html! {
                h1 { "Session" }
                (message(*done))
                (self.details(session))
            },
            Content::Gone { id, ended, done } => html! {
                h1 { "Session" }
                (message(*done))
                p { code { (id) } }
                @if let Some(ended) = ended {
                    p {
                        "It has ended: " strong { (ended.reason) } ", " (self.time(ended.at)) "."
                        @if let Some(successor) = ended.successor {
                            " " a href=(View::One(successor).link()) { "Its successor" } "."
                        }
                    }
                } @else {
                    p { "No session with this id is known. Sessions that expired, or ended long ago, are not listed." }
                }
            },
            Content::NoId { text } => html! {
                h1 { "Not a session id" }
                p { bdi { (Cut(text, 200)) } " is not a session id, which has 44 characters. A token is not an id." }
            },
            Content::Failed { view } => html! {
                h1 { "The store is unavailable" }
                p {
                    "The page cannot be shown, and a revocation may or may not have been applied. "
                    a href=(view.link()) { "Try again" } "."
                }
            },
            Content::NotFromHere => html! {
                h1 { "Nothing was done" }
                p { "The request does not come from this page. " a href="?" { "Try it from here" } "." }
            },
            Content::NothingToDo => html! {
                h1 { "Nothing was done" }
                p { "The request does not say what to revoke." }
            },
        }
    }

    /// A table of sessions. Its forms return to `view`.
    fn table(&self, sessions: &[SessionInfo], view: &View, none: &str) -> Markup {
        if sessions.is_empty() {
            return html! { p.none { (none) } };
        }
        // Otherwise the user is in the heading.
        let of_several = matches!(view, View::All(_));
        html! {
            table {
                thead {
                    tr {
                        th scope="col" { "Session" }
                        @if of_several { th scope="col" { "User" } }
                        th scope="col" { "Last seen" }
                        th.wide scope="col" { "Created" }
                        th.wide scope="col" { "Expires" }
                        th.mid scope="col" { "Address" }
                        th.widest scope="col" { "User agent" }
                        th scope="col" { span.hidden { "Revoke" } }
                    }
                }
                tbody {
                    @for session in sessions { (self.row(session, view, of_several)) }
                }
            }
        }
    }

    fn row(&self, session: &SessionInfo, view: &View, of_several: bool) -> Markup {
        let id = session.id();
        html! {
            tr {
                th scope="row" { a href=(View::One(id).link()) { code title=(id) { (Short(id)) } } }
                @if of_several { td.user { (user(session, SHORT_NAME)) } }
                td { (self.time(session.last_seen().into())) }
                td.wide { (self.time(session.created_at().into())) }
                td.wide { (self.time(session.expires_at().into())) }
                td.mid { @if let Some(ip) = session.metadata().ip() { (ip) } }
                td class="widest agent" {
                    @if let Some(agent) = session.metadata().user_agent() { bdi { (Cut(agent, SHORT_AGENT)) } }
                }
                td.act {
                    form method="post" action=(view.doing(&Act::Revoke(id))) {
                        button aria-label={ "Revoke " (Short(id)) } { "Revoke" }
                    }
                }
            }
        }
    }

    fn details(&self, session: &SessionInfo) -> Markup {
        let id = session.id();
        let times =
            [("Created", session.created_at()), ("Last seen", session.last_seen()), ("Expires", session.expires_at())];
        let not_recorded = html! { span.nobody { "not recorded" } };
        html! {
            dl {
                dt { "Id" } dd { code { (id) } }
                dt { "User" } dd { (user(session, usize::MAX)) }
                @for (name, time) in times {
                    dt { (name) } dd { (self.time(time.into())) " " small { (Timestamp::from(time)) } }
                }
                dt { "Address" }
                dd { @if let Some(ip) = session.metadata().ip() { (ip) } @else { (not_recorded) } }
                dt { "User agent" }
                dd { @if let Some(agent) = session.metadata().user_agent() { bdi { (agent) } } @else { (not_recorded) } }
            }
            form method="post" action=(View::One(id).doing(&Act::Revoke(id))) {
                button.danger { "Revoke this session" }
            }
        }
    }

    fn counted(&self) -> Markup {
        let Stats {
            conflicts,
            overwrites,
            ended_concurrently,
            unsaved,
            outages,
            corrupt,
            created,
            logins,
            rotations,
            ended,
            evictions,
            reused_tokens,
            signature_only,
        } = self.stats;
        let counts = [
            ("created", created),
            ("logins", logins),
            ("rotations", rotations),
            ("ended", ended),
            ("evicted", evictions),
            ("reused tokens", reused_tokens),
            ("merged saves", conflicts),
            ("overwritten values", overwrites),
            ("ended by another request", ended_concurrently),
            ("not saved", unsaved),
            ("outages", outages),
            ("accepted by signature only", signature_only),
            ("corrupt", corrupt),
        ];
        html! {
            h2 { "Counts of this process since it started" }
            dl.counts {
                @for (name, number) in counts {
                    div { dt { (name) } dd { (number) } }
                }
            }
        }
    }

    /// Relative for recent times.
    fn time(&self, time: Timestamp) -> Markup {
        html! { time datetime=(time) title=(time) { (Distance { from: self.now, to: time }) } }
    }
}

fn user(session: &SessionInfo, characters: usize) -> Markup {
    html! {
        @match session.user() {
            Some(user) => a href=(View::User(user.to_owned()).link()) { bdi { (Cut(user, characters)) } },
            None => span.nobody { "anonymous" },
        }
    }
}

fn field(name: &str, label: &str, value: &str) -> Markup {
    // A form field cannot represent such a name, so there is no form.
    let value = if value.contains(is_deceptive) { "" } else { value };
    html! {
        form method="get" {
            label for=(name) { (label) }
            input id=(name) name=(name) autocomplete="off" autocapitalize="none" spellcheck="false" required value=(value);
            button { "Find" }
        }
    }
}

fn message(done: Option<Done>) -> Markup {
    html! {
        @if let Some(done) = done {
            p.done role="status" {
                @match done {
                    Done::Revoked => "The session was revoked. Its next request is refused.",
                    Done::WasGone => "The session was no longer live.",
                    Done::UserRevoked(0) => "The user had no sessions.",
                    Done::UserRevoked(number) => {
                        (Counted(number as u64, "session was", "sessions were")) " revoked."
                    }
                }
            }
        }
    }
}

fn paging(from: &Cursor, next: Option<&Cursor>) -> Markup {
    let is_first = from.as_str().is_empty();
    html! {
        @if !is_first || next.is_some() {
            nav aria-label="Pages" {
                @if !is_first { a href="?" { "First page" } " " }
                @match next {
                    Some(next) => a rel="next" href=(View::All(next.clone()).link()) { "Next page" },
                    None => span { "This is the last page." },
                }
            }
        }
    }
}

struct Counted(u64, &'static str, &'static str);

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(number, one, several) = self;
        write!(f, "{number} {}", if *number == 1 { one } else { several })
    }
}

struct Millis(Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ms", self.0.as_secs_f64() * 1000.0)
    }
}

/// At most this many characters.
struct Cut<'a>(&'a str, usize);

impl fmt::Display for Cut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(self.1) {
            Some((end, _)) => write!(f, "{}…", &self.0[..end]),
            None => f.write_str(self.0),
        }
    }
}

/// The end of an id: the beginning is the same for all sessions of a user.
struct Short(SessionId);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.0.to_string();
        write!(f, "…{}", &id[id.len().saturating_sub(8)..])
    }
}

struct Distance {
    from: Timestamp,
    to: Timestamp,
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (past, future) = (self.from.since(self.to), self.to.since(self.from));
        let seconds = past.max(future).as_secs();
        let (number, unit) = match seconds {
            0 => return f.write_str("now"),
            1..60 => (seconds, "s"),
            60..3600 => (seconds / 60, "min"),
            3600..172_800 => (seconds / 3600, "h"),
            _ => (seconds / 86_400, "days"),
        };
        if past > future { write!(f, "{number} {unit} ago") } else { write!(f, "in {number} {unit}") }
    }
}
