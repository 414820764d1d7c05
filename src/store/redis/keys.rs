//! The names of keys.

use redis::Value;

use crate::{store::Record, token::SessionId};

/// The keys of a session, which share a slot.
pub(super) struct Keys {
    /// The session, the index and the epoch of its user.
    pub(super) all: [String; 3],
    /// The member of the index for the session.
    pub(super) member: String,
}

impl Keys {
    pub(super) fn session(&self) -> &str {
        &self.all[0]
    }

    /// The prefix of the sessions in this slot.
    pub(super) fn prefix(&self) -> String {
        format!("{}:", self.all[1])
    }

    /// The member of the index for the record, or an empty string for an anonymous session.
    pub(super) fn member_of(&self, record: &Record) -> &str {
        if record.user().is_some() { &self.member } else { "" }
    }
}

/// The prefix of values, after the prefix of the store.
const VALUES: &str = "kv:";

/// The prefix of every key.
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

    /// A key that does not belong to a user.
    pub(super) fn key(self, name: &str) -> String {
        format!("{}{name}", self.0)
    }

    /// The pattern of all sessions: 12 characters of slot tag, and 32 other characters. It does not match the index and the epoch.
    pub(super) fn pattern(self) -> String {
        format!("{}{{{}}}:{}", self.as_pattern(), "?".repeat(12), "?".repeat(32))
    }

    /// The key of a value. It cannot be the key of a session, which continues with `{`, `all` or `events`.
    pub(super) fn value(self, key: &str) -> String {
        format!("{}{VALUES}{key}", self.0)
    }

    /// The pattern of the values whose keys match `pattern`.
    pub(super) fn value_pattern(self, pattern: &str) -> String {
        format!("{}{VALUES}{pattern}", self.as_pattern())
    }

    /// The key of a value without prefixes.
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
