//! Renders the page.

use std::{fmt, time::Duration};

use super::{
    html::{Html, is_deceptive},
    query::{Act, Done, View},
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
        let mut html = Html::default();
        html.markup("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n")
            .markup("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n")
            .markup("<meta name=\"robots\" content=\"noindex\">\n")
            .markup("<meta name=\"color-scheme\" content=\"light dark\">\n<title>")
            .text(self.title())
            .markup("</title>\n<link rel=\"stylesheet\" href=\"?style=")
            .text(env!("CARGO_PKG_VERSION"))
            .markup("\">\n</head>\n<body>\n<header>\n<a class=\"home\" href=\"?\">Sessions</a>\n");
        self.status(&mut html);
        html.markup("</header>\n<main>\n");
        self.search(&mut html);
        self.content(&mut html);
        html.markup("</main>\n<footer>\n");
        self.counted(&mut html);
        html.markup("</footer>\n</body>\n</html>\n");
        html.into_string()
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

    fn status(&self, html: &mut Html) {
        let health = &self.health;
        html.markup(match health.status {
            HealthStatus::Up => {
                "<section class=\"health up\" aria-label=\"Health of the store\">\n<p><strong>up</strong> "
            }
            HealthStatus::Degraded => {
                "<section class=\"health degraded\" aria-label=\"Health of the store\">\n<p><strong>degraded</strong> "
            }
            HealthStatus::Down => {
                "<section class=\"health down\" aria-label=\"Health of the store\">\n<p><strong>down</strong> "
            }
        });
        html.markup("<span>store <b>").text(health.store).markup("</b></span> <span>since ");
        self.time(html, health.since);
        html.markup("</span> <span>answered in <b>").text(Millis(health.latency)).markup("</b></span></p>\n");
        if let Some(cause) = &health.cause {
            html.markup("<p class=\"cause\">").text(cause).markup("</p>\n");
        }
        if let Some(fallback) = self.fallback {
            html.markup("<p class=\"fallback\">fallback: <b>")
                .markup(if fallback.using_fallback { "in use" } else { "not in use" })
                .markup("</b>, ")
                .text(Counted(fallback.in_memory as u64, "session", "sessions"))
                .markup(" in memory, ")
                .text(fallback.cached)
                .markup(" cached, ")
                .text(fallback.journalled)
                .markup(" changes waiting; since the start ")
                .text(Counted(fallback.outages, "outage", "outages"))
                .markup(", ")
                .text(fallback.replayed)
                .markup(" replayed, ")
                .text(fallback.dropped)
                .markup(" dropped, ")
                .text(fallback.refused)
                .markup(" refused</p>\n");
        }
        html.markup("</section>\n");
    }

    fn search(&self, html: &mut Html) {
        let (user, id) = match &self.content {
            Content::User { user, .. } => (user.as_str(), String::new()),
            Content::One { session, .. } => ("", session.id().to_string()),
            Content::Gone { id, .. } => ("", id.to_string()),
            Content::NoId { text } => ("", text.clone()),
            _ => ("", String::new()),
        };
        html.markup("<div class=\"search\" role=\"search\">\n");
        field(html, "<label for=\"user\">User</label><input id=\"user\" name=\"user\"", user);
        field(html, "<label for=\"id\">Session id</label><input id=\"id\" name=\"id\"", &id);
        html.markup("</div>\n");
    }

    fn content(&self, html: &mut Html) {
        match &self.content {
            Content::All { from, sessions, next, live, done } => {
                html.markup("<h1>Live sessions</h1>\n");
                message(html, *done);
                match live {
                    Some(Live::Counted(number)) => {
                        html.markup("<p>").text(Counted(*number, "session", "sessions")).markup(" in total.</p>\n");
                    }
                    Some(Live::Many) => {
                        html.markup(
                            "<p>There are too many sessions to count quickly. <a href=\"?count\">Count them</a>, ",
                        )
                        .markup("which may take a minute.</p>\n");
                    }
                    None => {}
                }
                let view = View::All(from.clone());
                self.table(html, sessions, &view, if next.is_some() { "None on this page." } else { "None." });
                self.paging(html, from, next.as_ref());
            }
            Content::User { user, sessions, number, done } => {
                html.markup("<h1>Sessions of <bdi>").text(user).markup("</bdi></h1>\n");
                message(html, *done);
                if *number > sessions.len() {
                    html.markup("<p>").text(MAX_OF_USER).markup(" of ").text(number).markup(", newest first.</p>\n");
                }
                let view = View::User(user.clone());
                self.table(html, sessions, &view, "No live sessions.");
                // Even if none is listed: sessions that the index has lost end too.
                html.markup("<form method=\"post\" class=\"all\" action=\"")
                    .text(view.doing(&Act::RevokeUser(user.clone())))
                    .markup("\"><button class=\"danger\">Revoke all sessions of <bdi>")
                    .text(user)
                    .markup("</bdi></button></form>\n");
            }
            Content::One { session, done } => {
                html.markup("<h1>Session</h1>\n");
                message(html, *done);
                self.details(html, session);
            }
            Content::Gone { id, ended, done } => {
                html.markup("<h1>Session</h1>\n");
                message(html, *done);
                html.markup("<p><code>").text(id).markup("</code></p>\n<p>");
                match ended {
                    Some(ended) => {
                        html.markup("It has ended: <strong>").text(ended.reason).markup("</strong>, ");
                        self.time(html, ended.at);
                        html.markup(".");
                        if let Some(successor) = ended.successor {
                            html.markup(" <a href=\"")
                                .text(View::One(successor).link())
                                .markup("\">Its successor</a>.");
                        }
                    }
                    None => {
                        html.markup("No session with this id is known. Sessions that expired, or ended long ago, are not listed.");
                    }
                }
                html.markup("</p>\n");
            }
            Content::NoId { text } => {
                html.markup("<h1>Not a session id</h1>\n<p><bdi>")
                    .text(Cut(text, 200))
                    .markup("</bdi> is not a session id, which has 44 characters. A token is not an id.</p>\n");
            }
            Content::Failed { view } => {
                html.markup("<h1>The store is unavailable</h1>\n<p>The page cannot be shown, ")
                    .markup("and a revocation may or may not have been applied. <a href=\"")
                    .text(view.link())
                    .markup("\">Try again</a>.</p>\n");
            }
            Content::NotFromHere => {
                html.markup("<h1>Nothing was done</h1>\n<p>The request does not come from this page. ")
                    .markup("<a href=\"?\">Try it from here</a>.</p>\n");
            }
            Content::NothingToDo => {
                html.markup("<h1>Nothing was done</h1>\n<p>The request does not say what to revoke.</p>\n");
            }
        }
    }

    fn table(&self, html: &mut Html, sessions: &[SessionInfo], view: &View, none: &'static str) {
        if sessions.is_empty() {
            html.markup("<p class=\"none\">").markup(none).markup("</p>\n");
            return;
        }
        // Otherwise the user is in the heading.
        let of_several = matches!(view, View::All(_));
        html.markup("<table>\n<thead><tr><th scope=\"col\">Session</th>")
            .markup(if of_several { "<th scope=\"col\">User</th>" } else { "" })
            .markup("<th scope=\"col\">Last seen</th><th scope=\"col\" class=\"wide\">Created</th>")
            .markup("<th scope=\"col\" class=\"wide\">Expires</th><th scope=\"col\" class=\"mid\">Address</th>")
            .markup("<th scope=\"col\" class=\"widest\">User agent</th>")
            .markup("<th scope=\"col\"><span class=\"hidden\">Revoke</span></th></tr></thead>\n<tbody>\n");
        for session in sessions {
            let id = session.id();
            html.markup("<tr><th scope=\"row\"><a href=\"")
                .text(View::One(id).link())
                .markup("\"><code title=\"")
                .text(id)
                .markup("\">")
                .text(Short(id))
                .markup("</code></a></th>");
            if of_several {
                html.markup("<td class=\"user\">");
                user(html, session, SHORT_NAME);
                html.markup("</td>");
            }
            html.markup("<td>");
            self.time(html, session.last_seen().into());
            html.markup("</td><td class=\"wide\">");
            self.time(html, session.created_at().into());
            html.markup("</td><td class=\"wide\">");
            self.time(html, session.expires_at().into());
            html.markup("</td><td class=\"mid\">");
            if let Some(ip) = session.metadata().ip() {
                html.text(ip);
            }
            html.markup("</td><td class=\"widest agent\">");
            if let Some(agent) = session.metadata().user_agent() {
                html.markup("<bdi>").text(Cut(agent, SHORT_AGENT)).markup("</bdi>");
            }
            html.markup("</td><td class=\"act\"><form method=\"post\" action=\"")
                .text(view.doing(&Act::Revoke(id)))
                .markup("\"><button aria-label=\"Revoke ")
                .text(Short(id))
                .markup("\">Revoke</button></form></td></tr>\n");
        }
        html.markup("</tbody>\n</table>\n");
    }

    fn paging(&self, html: &mut Html, from: &Cursor, next: Option<&Cursor>) {
        let first = from.as_str().is_empty();
        if first && next.is_none() {
            return;
        }
        html.markup("<nav aria-label=\"Pages\">");
        if !first {
            html.markup("<a href=\"?\">First page</a> ");
        }
        match next {
            Some(next) => {
                html.markup("<a rel=\"next\" href=\"").text(View::All(next.clone()).link()).markup("\">Next page</a>")
            }
            None => html.markup("<span>This is the last page.</span>"),
        };
        html.markup("</nav>\n");
    }

    fn details(&self, html: &mut Html, session: &SessionInfo) {
        let id = session.id();
        html.markup("<dl>\n<dt>Id</dt><dd><code>").text(id).markup("</code></dd>\n<dt>User</dt><dd>");
        user(html, session, usize::MAX);
        html.markup("</dd>\n");
        let times =
            [("Created", session.created_at()), ("Last seen", session.last_seen()), ("Expires", session.expires_at())];
        for (name, time) in times {
            html.markup("<dt>").markup(name).markup("</dt><dd>");
            self.time(html, time.into());
            html.markup(" <small>").text(Timestamp::from(time)).markup("</small></dd>\n");
        }
        html.markup("<dt>Address</dt><dd>");
        match session.metadata().ip() {
            Some(ip) => html.text(ip),
            None => html.markup("<span class=\"nobody\">not recorded</span>"),
        };
        html.markup("</dd>\n<dt>User agent</dt><dd>");
        match session.metadata().user_agent() {
            Some(agent) => html.markup("<bdi>").text(agent).markup("</bdi>"),
            None => html.markup("<span class=\"nobody\">not recorded</span>"),
        };
        html.markup("</dd>\n</dl>\n<form method=\"post\" action=\"")
            .text(View::One(id).doing(&Act::Revoke(id)))
            .markup("\"><button class=\"danger\">Revoke this session</button></form>\n");
    }

    fn counted(&self, html: &mut Html) {
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
        html.markup("<h2>Counts of this process since it started</h2>\n<dl class=\"counts\">\n");
        for (name, number) in [
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
        ] {
            html.markup("<div><dt>").markup(name).markup("</dt><dd>").text(number).markup("</dd></div>\n");
        }
        html.markup("</dl>\n");
    }

    /// Relative for recent times.
    fn time(&self, html: &mut Html, time: Timestamp) {
        html.markup("<time datetime=\"").text(time).markup("\" title=\"").text(time).markup("\">");
        html.text(Distance { from: self.now, to: time }).markup("</time>");
    }
}

fn user(html: &mut Html, session: &SessionInfo, characters: usize) {
    match session.user() {
        Some(user) => html
            .markup("<a href=\"")
            .text(View::User(user.to_owned()).link())
            .markup("\"><bdi>")
            .text(Cut(user, characters))
            .markup("</bdi></a>"),
        None => html.markup("<span class=\"nobody\">anonymous</span>"),
    };
}

fn field(html: &mut Html, labelled: &'static str, value: &str) {
    // A form field cannot represent such a name, so there is no form.
    let value = if value.contains(is_deceptive) { "" } else { value };
    html.markup("<form method=\"get\">")
        .markup(labelled)
        .markup(" autocomplete=\"off\" autocapitalize=\"none\" spellcheck=\"false\" required value=\"")
        .text(value)
        .markup("\"><button>Find</button></form>\n");
}

fn message(html: &mut Html, done: Option<Done>) {
    let Some(done) = done else { return };
    html.markup("<p class=\"done\" role=\"status\">");
    match done {
        Done::Revoked => html.markup("The session was revoked. Its next request is refused."),
        Done::WasGone => html.markup("The session was no longer live."),
        Done::UserRevoked(0) => html.markup("The user had no sessions."),
        Done::UserRevoked(number) => {
            html.text(Counted(number as u64, "session was", "sessions were")).markup(" revoked.")
        }
    };
    html.markup("</p>\n");
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
