-- Sets what one upload counts for, in its tenant and its user: bytes, and whether it is open.
-- Absolute values, so that doing it twice is doing it once.
-- KEYS[1] one tenant's hash; KEYS[2] is there when all uploads have been counted.
-- ARGV: mode, upload, user, bytes, open, the most bytes and open uploads of a user and of a
-- tenant (0 is no limit), and the parts that a final upload joins, each once. A mode says what
-- holds:
--   reserve  not over a limit, and only if all uploads have been counted;
--   settle   only if the upload counts already: a late event must not bring it back;
--   count    always.
-- In the hash, 'r:<upload>' is '<bytes> <open> <user> <time in s>'; 'b:' and 'o:' are the sums of
-- the tenant, with the user behind the colon those of a user.
-- A file that came in parts counts once: while a final upload counts, complete parts of it are
-- parked as 'p:<part>', '<bytes> <final> <user> <time in s>', and named in 'f:<final>'. They
-- count again should it end before they do.
-- Returns 'ok', 'uncounted', or which limit is passed: 'bytes' or 'open'.
local key, mode, upload, user = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local bytes, open = tonumber(ARGV[4]), tonumber(ARGV[5])
if mode == 'reserve' and redis.call('EXISTS', KEYS[2]) == 0 then return 'uncounted' end

local function counted(one)
  local was = redis.call('HGET', key, 'r:' .. one)
  if was then
    local b, o, u, at = string.match(was, '^(%d+) (%d+) (%S+) (%d+)')
    return tonumber(b), tonumber(o), u, at
  end
end

local function add(field, by)
  if by ~= 0 and redis.call('HINCRBY', key, field, string.format('%.0f', by)) == 0 then
    redis.call('HDEL', key, field)
  end
end

local function add_bytes(of, by)
  add('b:', by)
  add('b:' .. of, by)
end

local ends = bytes == 0 and open == 0
if redis.call('HEXISTS', key, 'p:' .. upload) == 1 then
  if ends then redis.call('HDEL', key, 'p:' .. upload) end
  return 'ok'
end

local had_bytes, had_open, owner = counted(upload)
if had_bytes then
  user = owner
elseif mode == 'settle' then
  return 'ok'
end
local more_bytes, more_open = bytes - (had_bytes or 0), open - (had_open or 0)

if mode == 'reserve' then
  local new_bytes = more_bytes
  for n = 10, #ARGV do
    local b, _, u = counted(ARGV[n])
    if u == user then new_bytes = new_bytes - b end
  end
  for _, sum in ipairs({{'o:', more_open, ARGV[9], 'open'}, {'o:' .. user, more_open, ARGV[7], 'open'},
    {'b:', new_bytes, ARGV[8], 'bytes'}, {'b:' .. user, new_bytes, ARGV[6], 'bytes'}}) do
    local limit = tonumber(sum[3])
    if limit > 0 and sum[2] > 0
      and tonumber(redis.call('HGET', key, sum[1]) or 0) + sum[2] > limit then
      return sum[4]
    end
  end
end

add_bytes(user, more_bytes)
add('o:', more_open)
add('o:' .. user, more_open)
if ends then
  redis.call('HDEL', key, 'r:' .. upload)
  for part in string.gmatch(redis.call('HGET', key, 'f:' .. upload) or '', '%S+') do
    local parked = redis.call('HGET', key, 'p:' .. part)
    if parked then
      local b, final, u, at = string.match(parked, '^(%d+) (%S+) (%S+) (%d+)')
      if final == upload then
        redis.call('HDEL', key, 'p:' .. part)
        redis.call('HSET', key, 'r:' .. part, string.format('%s 0 %s %s', b, u, at))
        add_bytes(u, tonumber(b))
      end
    end
  end
  redis.call('HDEL', key, 'f:' .. upload)
  return 'ok'
end

redis.call('HSET', key, 'r:' .. upload,
  string.format('%.0f %d %s %s', bytes, open, user, redis.call('TIME')[1]))
for n = 10, #ARGV do
  local part = ARGV[n]
  local b, o, u, at = counted(part)
  if u == user and o == 0 then
    redis.call('HDEL', key, 'r:' .. part)
    redis.call('HSET', key, 'p:' .. part, string.format('%.0f %s %s %s', b, upload, u, at))
    redis.call('HSET', key, 'f:' .. upload, (redis.call('HGET', key, 'f:' .. upload) or '') .. ' ' .. part)
    add_bytes(u, -b)
  end
end
return 'ok'
