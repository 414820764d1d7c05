//! What things are called in Redis.

use redis::Value;

use crate::{store::Record, token::SessionId};

/// The keys of a session, which share a slot.
pub(super) struct Keys {
    /// The session, the index and the epoch of its user.
    pub(super) all: [String; 3],
    /// What the index calls the session.
    pub(super) member: String,
}

impl Keys {
    pub(super) fn session(&self) -> &str {
        &self.all[0]
    }

    /// What a session of this slot is called up to its member.
    pub(super) fn prefix(&self) -> String {
        format!("{}:", self.all[1])
    }

    /// What the index calls the session of this record, if it is to know of it.
    pub(super) fn member_of(&self, record: &Record) -> &str {
        if record.user().is_some() { &self.member } else { "" }
    }
}

/// What the keys of values begin with, after the prefix.
const VALUES: &str = "kv:";

/// What begins every key.
#[derive(Clone, Copy)]
pub(super) struct Prefix<'a>(pub(super) &'a str);

impl Prefix<'_> {
    pub(super) fn keys(self, id: &SessionId) -> Keys {
        let text = id.to_string();
        self.keys_of(id.slot_tag(), &text[id.slot_tag().len()..])
    }

    pub(super) fn keys_of(self, tag: &str, member: &str) -> Keys {
        let index = format!("{}{{{tag}}}", self.0);
        Keys { all: [format!("{index}:{member}"), index.clone(), format!("{index}:epoch")], member: member.to_owned() }
    }

    /// A key that belongs to no user.
    pub(super) fn key(self, name: &str) -> String {
        format!("{}{name}", self.0)
    }

    /// The pattern of all sessions: twelve characters of slot tag, 32 of the rest. The index and the epoch do not look like that.
    pub(super) fn pattern(self) -> String {
        format!("{}{{{}}}:{}", self.as_pattern(), "?".repeat(12), "?".repeat(32))
    }

    /// What a value is called. Nothing of a session is called so: after the prefix of those comes `{`, `all` or `events`.
    pub(super) fn value(self, key: &str) -> String {
        format!("{}{VALUES}{key}", self.0)
    }

    /// The pattern of the values whose keys match `pattern`.
    pub(super) fn value_pattern(self, pattern: &str) -> String {
        format!("{}{VALUES}{pattern}", self.as_pattern())
    }

    /// The key of a value.
    pub(super) fn key_of_value(self, key: &Value) -> Option<String> {
        let Value::BulkString(key) = key else { return None };
        let key = std::str::from_utf8(key).ok()?.strip_prefix(self.0)?.strip_prefix(VALUES)?;
        Some(key.to_owned())
    }

    fn as_pattern(self) -> String {
        self.0.chars().flat_map(|c| "*?[]^\\-".contains(c).then_some('\\').into_iter().chain([c])).collect()
    }

    /// The session of a key.
    pub(super) fn id_of(self, key: &Value) -> Option<SessionId> {
        let Value::BulkString(key) = key else { return None };
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(self.0)?;
        let (tag, rest) = rest.strip_prefix('{')?.split_once("}:")?;
        format!("{tag}{rest}").parse().ok()
    }
}
