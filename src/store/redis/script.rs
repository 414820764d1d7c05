//! The operations that Redis must check before it makes them.
//!
//! Every script gets the same three keys, which share a cluster slot: the session, the index of its user, and the
//! epoch of its user. They recognise a write that they have made already: a reply may be lost, and the write sent again.
//!
//! What a session key holds:
//! ```text
//! {"v":2,"n":"AAAAAxbk0fTjK8pw","t":[…                  a record
//! {"v":2,"n":"AAAAAxbk0fTjK8pw","e":1763679600000,"t":[… a record created after its user's sessions were all ended
//! {"v":2,"n":"AAAAAxbk0fTjK8pw","o":1763679600000123,"t":[… a record of a user; `o` orders the user's sessions by creation
//! {"end":"revoked","at":1763679600000,"by":"5f…"}         what is remembered of one that ended, and which call ended it
//! {"end":"replaced",…,"to":"AAAAAAAAAAAAHHHH…"}           the same, and which session carries it on
//! {"end":"used",…,"by":"AAAAARbk0fTjK8pw"}{"v":2,…        the same, and what it was, for who consumed it
//! ```

use redis::{Cmd, cmd};

#[derive(Clone)]
pub(super) struct Script {
    pub(super) name: &'static str,
    text: String,
    sha: String,
}

/// A script, what it works on, and what it is told.
pub(super) struct Call<'a> {
    pub(super) script: &'a Script,
    pub(super) keys: &'a [String],
    pub(super) args: Vec<Vec<u8>>,
}

impl Call<'_> {
    /// The call, for a server that has seen the script.
    pub(super) fn by_sha(&self) -> Cmd {
        self.command("EVALSHA", &self.script.sha)
    }

    /// The call, for a server that has not.
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
    /// `guarded` is false only in tests, which must see what the guards are for.
    pub(super) fn new(guarded: bool) -> Self {
        let script = |name, body: &str| {
            let text = format!("local guarded = {guarded}\n{COMMON}{body}");
            let sha = redis::Script::new(&text).get_hash().to_owned();
            Script { name, text, sha }
        };
        Self {
            create: script("create", CREATE),
            update: script("update", UPDATE),
            touch: script("touch", TOUCH),
            end: script("end", END),
            consume: script("consume", CONSUME),
            list: script("list", LIST),
            end_user: script("end_user", END_USER),
            reserve: script("reserve", RESERVE),
            probe: script("probe", PROBE),
        }
    }
}

/// What the scripts have in common. `n` is a version: 16 characters, always in the same place.
const COMMON: &str = r#"
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Whether this is a session, and no revocation of its user's came after it.
local function live(found, epoch)
  if not found or string.sub(found, 1, 5) ~= '{"v":' then return false end
  if not epoch or not guarded then return true end
  return tonumber(string.match(found, '^,"e":(%d+)', 30) or 0) >= tonumber(epoch)
end

-- Whether this is neither a session nor what is remembered of one: nobody here has written it.
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

-- Forgets in the index what ended long ago, and keeps it as long as what is in it.
local function index(key, member, ttl, memory)
  local time = now()
  redis.call('ZREMRANGEBYSCORE', key, '-inf', time - memory)
  redis.call('ZADD', key, time + ttl, member)
  if redis.call('PTTL', key) < ttl + memory then redis.call('PEXPIRE', key, ttl + memory) end
end
"#;

/// `{1, evicted…}` when the session is there, `{0}` when its id is in use, `{-2}` when it has been, `{-1}` when there is no place for
/// another. The index remembers an id that has expired.
const CREATE: &str = r#"
local n, head, tail, ttl, member, memory = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local prefix, limit, policy = ARGV[7], tonumber(ARGV[8]), ARGV[9]
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
      if live(found, epoch) then
        local created, written, idle = string.match(found, '"t":%[(%d+),(%d+),(%d+),')
        created, written, idle = created or 0, written or 0, idle or 0 -- what cannot be read goes first
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
        redis.call('SET', prefix .. sessions[i][1], ended('evicted'), 'PX', memory)
        redis.call('ZREM', KEYS[2], sessions[i][1])
        table.insert(result, sessions[i][1])
      end
    end
  end
end
redis.call('SET', KEYS[1], head .. added(epoch, order()) .. tail, 'PX', ttl)
index(KEYS[2], member, ttl, memory)
return result
"#;

/// 1 when the write is in force, 0 when the session is gone, and what is there when that is another version.
const UPDATE: &str = r#"
local n, head, tail, ttl, member, memory, expected =
  ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6]), ARGV[7]
local found, epoch = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[3])
if guarded then
  if foreign(found) then return {found, redis.call('PTTL', KEYS[1])} end
  if not live(found, epoch) then return 0 end
  if version(found) == n then return 1 end
  if version(found) ~= expected then return {found, redis.call('PTTL', KEYS[1])} end
end
if member ~= '' then redis.call('ZSCORE', KEYS[2], member) end -- if that is no index, nothing is written
redis.call('SET', KEYS[1], head .. (found and added(added_to(found)) or '') .. tail, 'PX', ttl)
if member ~= '' then index(KEYS[2], member, ttl, memory) end
return 1
"#;

/// Extends the life of what was loaded, and of nothing that was written since: 0 when the session is gone. The index comes second, and may fail: where memory
/// is short, sessions must not end for it.
const TOUCH: &str = r#"
local n, ttl, member, memory = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local found, epoch = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[3])
if not live(found, epoch) then return 0 end
if version(found) == n then
  redis.call('PEXPIRE', KEYS[1], ttl)
  if member ~= '' then pcall(index, KEYS[2], member, ttl, memory) end
end
return 1
"#;

/// 1 when the session has ended by this, 0 when it had before, and what is there when that is another version.
/// Where memory is too short to remember the end, the session ends all the same; not in favour of another, which has to be remembered.
const END: &str = r#"
local expected, reason, member, memory, successor, by = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
local found, epoch = redis.pcall('GET', KEYS[1]), redis.call('GET', KEYS[3])
if type(found) == 'table' then
  if not string.find(found.err, 'WRONGTYPE') then return found end
  found = '?' -- it is nobody's, whatever it is
end
local favour = successor ~= '' and ',"to":"' .. successor .. '"}'
by = ',"by":"' .. by .. '"}'
if found and string.sub(found, 1, 7) == '{"end":' then
  return string.sub(found, -#(favour or by)) == (favour or by) and 1 or 0
end
if not found and redis.call('ZSCORE', KEYS[2], member) then return 0 end -- it has expired
local alive = live(found, epoch)
if expected ~= '' then
  if foreign(found) then return {found, redis.call('PTTL', KEYS[1])} end
  if not alive then return 0 end
  if version(found) ~= expected then return {found, redis.call('PTTL', KEYS[1])} end
end
if not guarded then
  redis.call('UNLINK', KEYS[1])
elseif favour then
  redis.call('SET', KEYS[1], string.sub(ended(reason), 1, -2) .. favour, 'PX', memory)
else
  -- Who asks again, because the answer was lost, gets the same.
  local text = alive and string.sub(ended(reason), 1, -2) .. by or ended(reason)
  if redis.pcall('SET', KEYS[1], text, 'PX', memory).err then redis.call('UNLINK', KEYS[1]) end
end
redis.pcall('ZREM', KEYS[2], member)
return alive and 1 or 0
"#;

/// What the session was and its time to live, for the one claim that consumes it; else 0.
const CONSUME: &str = r#"
local claim, member, memory = ARGV[1], ARGV[2], tonumber(ARGV[3])
local found, epoch = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[3])
if not found then return 0 end
local ttl = redis.call('PTTL', KEYS[1])
if live(found, epoch) then
  local head = string.sub(ended('used'), 1, -2) .. ',"by":"' .. claim .. '","ttl":' .. ttl .. '}'
  if guarded then redis.call('SET', KEYS[1], head .. found, 'PX', math.max(ttl, memory)) end
  redis.pcall('ZREM', KEYS[2], member)
  return {found, ttl}
end
local by, ttl, was = string.match(found, '^{"end":"used","at":%d+,"by":"([^"]*)","ttl":(-?%d+)}(.*)$')
if by == claim then return {was, tonumber(ttl)} end
return 0
"#;

/// The live sessions in the index: member, record, time to live; and again.
const LIST: &str = r#"
local prefix, epoch, list = ARGV[1], redis.call('GET', KEYS[3]), {}
for _, member in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
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

/// Ends what the index has, and by the epoch what it has lost. `KEYS[1]` is the session that is spared, or nobody's.
/// It looks at all before it ends one: in a cluster, some may be on their way to another node.
const END_USER: &str = r#"
local prefix, spared, reason, memory, epochs = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local epoch, gone = redis.call('GET', KEYS[3]), {}
local spare = spared ~= '' and redis.call('GET', KEYS[1])
local members = redis.pcall('ZRANGE', KEYS[2], 0, -1)
if members.err then
  -- Somebody has put something else there: the epoch ends them all.
  if not string.find(members.err, 'WRONGTYPE') then return members end
  members = {}
end
for _, member in ipairs(members) do
  local key = prefix .. member
  if member ~= spared and live(redis.call('GET', key), epoch) then table.insert(gone, member) end
end
for _, member in ipairs(gone) do
  local key = prefix .. member
  if redis.pcall('SET', key, ended(reason), 'PX', memory).err then redis.call('UNLINK', key) end
  redis.call('ZREM', KEYS[2], member)
end
local next = string.format('%.0f', math.max(now(), tonumber(epoch or 0) + 1))
if live(spare, epoch) then
  local epoch, order = added_to(spare)
  local rest = string.sub(spare, 30 + #added(epoch, order))
  redis.call('SET', KEYS[1], string.sub(spare, 1, 29) .. added(next, order) .. rest, 'KEEPTTL')
end
redis.call('SET', KEYS[3], next, 'PX', epochs)
return gone
"#;

/// Of a single key: the places of all sessions. 1 when this one has a place, or its place is extended; 0 when there is none.
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

/// Of a single key: a write that leaves nothing behind.
const PROBE: &str = "return redis.call('SET', KEYS[1], '', 'PX', 1000)";
