//! The writes that Redis must check before it makes them.
//!
//! They recognise a write that they have made already: a reply may be lost, and the write sent again.

use redis::{Cmd, cmd};

use super::{Record, Version};

pub(super) struct Script {
    text: &'static str,
    sha: String,
}

impl Script {
    pub(super) fn new(text: &'static str) -> Self {
        Self { text, sha: redis::Script::new(text).get_hash().to_owned() }
    }
}

/// A script and what it is to write.
pub(super) struct Call<'a> {
    pub(super) script: &'a Script,
    pub(super) keys: &'a [String],
    pub(super) expected: Version,
    pub(super) record: Option<&'a Record>,
    pub(super) ttl: u64,
}

impl Call<'_> {
    /// The call, for a server that has seen the script.
    pub(super) fn by_sha(&self) -> Cmd {
        self.command("EVALSHA", &self.script.sha)
    }

    /// The call, for a server that has not.
    pub(super) fn by_text(&self) -> Cmd {
        self.command("EVAL", self.script.text)
    }

    fn command(&self, name: &str, script: &str) -> Cmd {
        let mut command = cmd(name);
        command.arg(script).arg(self.keys.len()).arg(self.keys);
        command.arg(self.expected.stamp()).arg(self.ttl).arg(self.record.map(Record::encode));
        command
    }
}

/// Returns 1 when the write is in force, 0 when the session is gone, and what is there when that is another version.
pub(super) const UPDATE: &str = r"
local key, stamp, ttl, record = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local current = redis.call('GET', key)
if not current then return 0 end
if string.sub(current, 1, #stamp) == stamp then
  redis.call('SET', key, record, 'PX', ttl)
  return 1
end
if current == record then return 1 end
return {current, redis.call('PTTL', key)}
";

/// Extends the life of what was loaded, and of nothing that was written since.
pub(super) const TOUCH: &str = r"
local key, stamp, ttl = KEYS[1], ARGV[1], ARGV[2]
local current = redis.call('GET', key)
if current and string.sub(current, 1, #stamp) == stamp then
  redis.call('PEXPIRE', key, ttl)
end
return 1
";

/// Returns what `UPDATE` returns. The new session is written before the old one goes: where a write is refused (out of memory),
/// nothing has changed.
pub(super) const ROTATE: &str = r"
local old, new, stamp, ttl, record = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3]
local current = redis.call('GET', old)
if not current then
  if redis.call('GET', new) == record then return 1 end
  return 0
end
if string.sub(current, 1, #stamp) == stamp then
  redis.call('SET', new, record, 'PX', ttl)
  redis.call('UNLINK', old)
  return 1
end
return {current, redis.call('PTTL', old)}
";
