//! The Lua scripts of conditional writes.
//!
//! Every script gets three keys in the same cluster slot: the session, the index of its user, and the epoch of its user. Scripts recognize a
//! write that is applied already, because a reply can be lost and the write repeated.
//!
//! The value of a session key:
//! ```text
//! {"v":2,"n":"AAAAAxbk0fTjK8pw","t":[…                  a record
//! {"v":2,"n":"AAAAAxbk0fTjK8pw","e":1763679600000,"t":[… a record created after its user's sessions were all ended
//! {"v":2,"n":"AAAAAxbk0fTjK8pw","o":1763679600000123,"t":[… a record of a user; `o` orders the user's sessions by creation
//! {"end":"revoked","at":1763679600000,"by":"5f…"}         a tombstone, and the call that ended the session
//! {"end":"replaced",…,"to":"AAAAAAAAAAAAHHHH…"}           a tombstone, and the successor
//! {"end":"used",…,"by":"AAAAARbk0fTjK8pw"}{"v":2,…        a tombstone, the claim, and the record at that time
//! ```

use redis::{Cmd, cmd};

#[derive(Clone)]
pub(super) struct Script {
    pub(super) name: &'static str,
    text: String,
    sha: String,
}

/// A script with its keys and arguments.
pub(super) struct Call<'a> {
    pub(super) script: &'a Script,
    pub(super) keys: &'a [String],
    pub(super) args: Vec<Vec<u8>>,
}

impl Call<'_> {
    /// The command for a server that knows the script.
    pub(super) fn by_sha(&self) -> Cmd {
        self.command("EVALSHA", &self.script.sha)
    }

    /// The command for a server that does not.
    pub(super) fn by_text(&self) -> Cmd {
        self.command("EVAL", &self.script.text)
    }

    fn command(&self, name: &str, script: &str) -> Cmd {
        let mut command = cmd(name);
        command.arg(script).arg(self.keys.len()).arg(self.keys).arg(&self.args);
        command
    }
}

/// All scripts of a store.
pub(super) struct Scripts {
    pub(super) create: Script,
    pub(super) update: Script,
    pub(super) touch: Script,
    pub(super) end: Script,
    pub(super) consume: Script,
    pub(super) list: Script,
    pub(super) end_user: Script,
    pub(super) reserve: Script,
    pub(super) probe: Script,
}

impl Scripts {
    /// `guarded` is false only in tests that must find violations.
    pub(super) fn new(guarded: bool) -> Self {
        let script = |flags, name, body| {
            let text = format!("{flags}local guarded = {guarded}\n{COMMON}{body}");
            let sha = redis::Script::new(&text).get_hash().to_owned();
            Script { name, text, sha }
        };
        Self {
            create: script(UNDECLARED_KEYS, "create", CREATE),
            update: script("", "update", UPDATE),
            touch: script("", "touch", TOUCH),
            end: script("", "end", END),
            consume: script("", "consume", CONSUME),
            list: script(UNDECLARED_KEYS, "list", LIST),
            end_user: script(UNDECLARED_KEYS, "end_user", END_USER),
            reserve: script("", "reserve", RESERVE),
            probe: script("", "probe", PROBE),
        }
    }
}

/// Dragonfly refuses scripts that access keys which are not declared, without this line. A script that finds the sessions of a user in
/// the index cannot declare them; they are all in one slot. For Redis and Valkey, it is a comment.
const UNDECLARED_KEYS: &str = "--!df flags=allow-undeclared-keys\n";

/// Common functions. `n` is a version: 16 characters, always at the same position.
const COMMON: &str = r#"
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Whether this is a record, and all sessions of its user were not ended later.
local function live(found, epoch)
  if not found or string.sub(found, 1, 5) ~= '{"v":' then return false end
  if not epoch or not guarded then return true end
  return tonumber(string.match(found, '^,"e":(%d+)', 30) or 0) >= tonumber(epoch)
end

-- Whether this is neither a record nor a tombstone: another program has written it.
local function foreign(found)
  return found and string.sub(found, 1, 5) ~= '{"v":' and string.sub(found, 1, 7) ~= '{"end":'
end

local function version(found) return string.sub(found, 13, 28) end

local function ended(reason) return '{"end":"' .. reason .. '","at":' .. string.format('%.0f', now()) .. '}' end

-- The order in which the sessions of a user were created: the time in microseconds.
local function order()
  local time = redis.call('TIME')
  return string.format('%.0f', time[1] * 1000000 + time[2])
end

-- What the scripts add to a record: the epoch it belongs to, and its order.
local function added(epoch, order)
  return (epoch and ',"e":' .. epoch or '') .. (order and ',"o":' .. order or '')
end

-- The epoch and the order of a stored record, each nil if it has none.
local function added_to(found)
  local epoch = string.match(found, '^,"e":(%d+)', 30)
  return epoch, string.match(found, '^,"o":(%d+)', 30 + #added(epoch))
end

-- The number of sessions in a slice of an index: a call takes less than a millisecond.
local SLICE = 64

-- The members in a reply to ZSCAN.
local function members_of(found)
  local members = {}
  for i = 1, #found[2], 2 do members[#members + 1] = found[2][i] end
  return members
end

-- Adds a session to the index, and removes those that expired long ago.
local function index(key, member, ttl, tombstone_ttl)
  local time = now()
  redis.call('ZREMRANGEBYSCORE', key, '-inf', time - tombstone_ttl)
  redis.call('ZADD', key, time + ttl, member)
  if redis.call('PTTL', key) < ttl + tombstone_ttl then redis.call('PEXPIRE', key, ttl + tombstone_ttl) end
end
"#;

/// `replaced` is the member of the session that the new one replaces, if it is in this index. `{1, evicted…}`: created. `{0}`: the id exists. `{-2}`: the id has ended or expired. `{-1}`: the limit is reached. The index still has the
/// ids of expired sessions.
const CREATE: &str = r#"
local n, head, tail, ttl, member, tombstone_ttl = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local prefix, limit, policy, replaced = ARGV[7], tonumber(ARGV[8]), ARGV[9], ARGV[10]
local found = redis.call('GET', KEYS[1])
local epoch = redis.call('GET', KEYS[3])
if live(found, epoch) then
  if version(found) == n then return {1} end
  return {0}
end
if guarded and (found or redis.call('ZSCORE', KEYS[2], member)) then return {-2} end
local result = {1}
if limit > 0 then
  local time = now()
  if redis.call('ZCOUNT', KEYS[2], '(' .. time, '+inf') >= limit then
    local sessions = {}
    for _, other in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
      local key = prefix .. other
      local found = redis.call('GET', key)
      if other ~= replaced and live(found, epoch) then
        local created, written, idle = string.match(found, '"t":%[(%d+),(%d+),(%d+),')
        created, written, idle = created or 0, written or 0, idle or 0 -- a corrupt record is evicted first
        local used = math.max(created + written, time + redis.call('PTTL', key) - idle)
        local _, order = added_to(found)
        table.insert(sessions, {other, policy == 'oldest' and tonumber(created) or used, tonumber(order or 0)})
      end
    end
    local over = #sessions + 1 - limit
    if over > 0 and policy == 'reject' then return {-1} end
    table.sort(sessions, function(a, b)
      if a[2] ~= b[2] then return a[2] < b[2] end
      if a[3] ~= b[3] then return a[3] < b[3] end -- within the same millisecond
      return a[1] < b[1]
    end)
    for i = 1, over do
      if guarded then
        redis.call('SET', prefix .. sessions[i][1], ended('evicted'), 'PX', tombstone_ttl)
        redis.call('ZREM', KEYS[2], sessions[i][1])
        table.insert(result, sessions[i][1])
      end
    end
  end
end
redis.call('SET', KEYS[1], head .. added(epoch, order()) .. tail, 'PX', ttl)
index(KEYS[2], member, ttl, tombstone_ttl)
return result
"#;

/// 1: written. 0: the session is gone. Otherwise the current record, which has another version.
const UPDATE: &str = r#"
local n, head, tail, ttl, member, tombstone_ttl, expected =
  ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6]), ARGV[7]
local found, epoch = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[3])
if guarded then
  if foreign(found) then return {found, redis.call('PTTL', KEYS[1])} end
  if not live(found, epoch) then return 0 end
  if version(found) == n then return 1 end
  if version(found) ~= expected then return {found, redis.call('PTTL', KEYS[1])} end
end
if member ~= '' then redis.call('ZSCORE', KEYS[2], member) end -- fails before the write if the index is not a sorted set
redis.call('SET', KEYS[1], head .. (found and added(added_to(found)) or '') .. tail, 'PX', ttl)
if member ~= '' then index(KEYS[2], member, ttl, tombstone_ttl) end
return 1
"#;

/// Extends the session if it has the expected version. 0: the session is gone. Updating the index may fail: without memory, sessions must not
/// end because of it.
const TOUCH: &str = r#"
local n, ttl, member, tombstone_ttl = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local found, epoch = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[3])
if not live(found, epoch) then return 0 end
if version(found) == n then
  redis.call('PEXPIRE', KEYS[1], ttl)
  if member ~= '' then pcall(index, KEYS[2], member, ttl, tombstone_ttl) end
end
return 1
"#;

/// 1: ended. 0: the session had ended. Otherwise the current record, which has another version. Without memory for a tombstone, the session is
/// deleted; a replacement fails, because the tombstone must name the successor.
const END: &str = r#"
local expected, reason, member, tombstone_ttl, successor, by = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
local found, epoch = redis.pcall('GET', KEYS[1]), redis.call('GET', KEYS[3])
if type(found) == 'table' then
  if not string.find(found.err, 'WRONGTYPE') then return found end
  found = '?' -- of another program
end
local replaced = successor ~= '' and ',"to":"' .. successor .. '"}'
by = ',"by":"' .. by .. '"}'
if found and string.sub(found, 1, 7) == '{"end":' then
  return string.sub(found, -#(replaced or by)) == (replaced or by) and 1 or 0
end
if not found and redis.call('ZSCORE', KEYS[2], member) then return 0 end -- expired
local alive = live(found, epoch)
if expected ~= '' then
  if foreign(found) then return {found, redis.call('PTTL', KEYS[1])} end
  if not alive then return 0 end
  if version(found) ~= expected then return {found, redis.call('PTTL', KEYS[1])} end
end
if not guarded then
  redis.call('UNLINK', KEYS[1])
elseif replaced then
  redis.call('SET', KEYS[1], string.sub(ended(reason), 1, -2) .. replaced, 'PX', tombstone_ttl)
else
  -- The same call, repeated, gets the same reply.
  local text = alive and string.sub(ended(reason), 1, -2) .. by or ended(reason)
  if redis.pcall('SET', KEYS[1], text, 'PX', tombstone_ttl).err then redis.call('UNLINK', KEYS[1]) end
end
redis.pcall('ZREM', KEYS[2], member)
return alive and 1 or 0
"#;

/// The record and its time to live for the claim that uses the session up. Otherwise 0.
const CONSUME: &str = r#"
local claim, member, tombstone_ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
local found, epoch = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[3])
if not found then return 0 end
local ttl = redis.call('PTTL', KEYS[1])
if live(found, epoch) then
  local head = string.sub(ended('used'), 1, -2) .. ',"by":"' .. claim .. '","ttl":' .. ttl .. '}'
  if guarded then redis.call('SET', KEYS[1], head .. found, 'PX', math.max(ttl, tombstone_ttl)) end
  redis.pcall('ZREM', KEYS[2], member)
  return {found, ttl}
end
local by, ttl, was = string.match(found, '^{"end":"used","at":%d+,"by":"([^"]*)","ttl":(-?%d+)}(.*)$')
if by == claim then return {was, tonumber(ttl)} end
return 0
"#;

/// A slice of the index, from a cursor of `ZSCAN` on: the next cursor, and the live sessions with member, record, time to live. A session may
/// be in several slices.
const LIST: &str = r#"
local prefix, cursor, epoch = ARGV[1], ARGV[2], redis.call('GET', KEYS[3])
local found = redis.call('ZSCAN', KEYS[2], cursor, 'COUNT', SLICE)
local list = {found[1]}
for _, member in ipairs(members_of(found)) do
  local key = prefix .. member
  local found = redis.call('GET', key)
  if live(found, epoch) then
    table.insert(list, member)
    table.insert(list, found)
    table.insert(list, redis.call('PTTL', key))
  end
end
return list
"#;

/// Ends all sessions of the user through the epoch, and replaces a slice of those in the index by tombstones. Returns the next cursor, and the
/// members of the slice that ended. `KEYS[1]` is the session to spare, if there is one. The first call has the cursor 0; later ones, with the
/// cursor of the one before, only continue with the tombstones. All sessions of a slice are read before the first write, because in a cluster
/// some may be moving to another node.
const END_USER: &str = r#"
local prefix, spared, reason, tombstone_ttl, epochs, cursor =
  ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local is_first, epoch, gone = cursor == '0', redis.call('GET', KEYS[3]), {}
local spare = is_first and spared ~= '' and redis.call('GET', KEYS[1])
local next = epoch
if is_first then next = string.format('%.0f', math.max(now(), tonumber(epoch or 0) + 1)) end
local index = redis.pcall('ZSCAN', KEYS[2], cursor, 'COUNT', SLICE)
if index.err then
  -- Another program has replaced the index: the epoch ends all sessions.
  if not string.find(index.err, 'WRONGTYPE') then return index end
  index = {'0', {}}
end
for _, member in ipairs(members_of(index)) do
  local found = redis.call('GET', prefix .. member)
  if member ~= spared and live(found) and not (guarded and live(found, next)) then table.insert(gone, member) end
end
if is_first then
  if live(spare, epoch) then
    local epoch, order = added_to(spare)
    local rest = string.sub(spare, 30 + #added(epoch, order))
    redis.call('SET', KEYS[1], string.sub(spare, 1, 29) .. added(next, order) .. rest, 'KEEPTTL')
  end
  redis.call('SET', KEYS[3], next, 'PX', epochs)
end
for _, member in ipairs(gone) do
  local key = prefix .. member
  if redis.pcall('SET', key, ended(reason), 'PX', tombstone_ttl).err then redis.call('UNLINK', key) end
  redis.call('ZREM', KEYS[2], member)
end
table.insert(gone, 1, index[1])
return gone
"#;

/// For `max_sessions`, with one key. 1: the session has a place. 0: there is none.
const RESERVE: &str = r#"
local member, ttl, limit, renew = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local time = now()
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', time)
local held = redis.call('ZSCORE', KEYS[1], member)
if not held and renew ~= '1' and redis.call('ZCARD', KEYS[1]) >= limit then return 0 end
redis.call('ZADD', KEYS[1], math.max(time + ttl, tonumber(held or 0)), member)
if redis.call('PTTL', KEYS[1]) < ttl then redis.call('PEXPIRE', KEYS[1], ttl) end
return 1
"#;

/// A write with one key that expires immediately.
const PROBE: &str = "return redis.call('SET', KEYS[1], '', 'PX', 1000)";
