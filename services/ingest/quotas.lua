-- Sets what one upload counts for, in its tenant and its user: bytes, and whether it is open.
-- Absolute values, so that doing it twice is doing it once.
-- KEYS[1] one tenant's hash; KEYS[2] is there when all uploads have been counted.
-- ARGV: mode, upload, user, bytes, open, and the most bytes and open uploads of a user and of a
-- tenant; 0 is no limit. A mode says what holds:
--   reserve  not over a limit, and only if all uploads have been counted;
--   settle   only if the upload counts already: a late event must not bring it back;
--   count    always.
-- In the hash, 'r:<upload>' is '<bytes> <open> <user> <time in s>'; 'b:' and 'o:' are the sums of
-- the tenant, with the user behind the colon those of a user.
-- Returns 'ok', 'uncounted', or which limit is passed: 'bytes' or 'open'.
local mode, upload, user = ARGV[1], ARGV[2], ARGV[3]
local bytes, open = tonumber(ARGV[4]), tonumber(ARGV[5])
if mode == 'reserve' and redis.call('EXISTS', KEYS[2]) == 0 then return 'uncounted' end

local record, had_bytes, had_open = 'r:' .. upload, 0, 0
local was = redis.call('HGET', KEYS[1], record)
if was then
  local b, o, u = string.match(was, '^(%d+) (%d+) (%S+)')
  had_bytes, had_open, user = tonumber(b), tonumber(o), u
elseif mode == 'settle' then
  return 'ok'
end

local sums = {{'o:', open - had_open, ARGV[9], 'open'}, {'o:' .. user, open - had_open, ARGV[7], 'open'},
  {'b:', bytes - had_bytes, ARGV[8], 'bytes'}, {'b:' .. user, bytes - had_bytes, ARGV[6], 'bytes'}}
if mode == 'reserve' then
  for _, sum in ipairs(sums) do
    local limit = tonumber(sum[3])
    if limit > 0 and sum[2] > 0
      and tonumber(redis.call('HGET', KEYS[1], sum[1]) or 0) + sum[2] > limit then
      return sum[4]
    end
  end
end
for _, sum in ipairs(sums) do
  if sum[2] ~= 0 and redis.call('HINCRBY', KEYS[1], sum[1], string.format('%.0f', sum[2])) == 0 then
    redis.call('HDEL', KEYS[1], sum[1])
  end
end
if bytes == 0 and open == 0 then
  redis.call('HDEL', KEYS[1], record)
else
  local now = redis.call('TIME')[1]
  redis.call('HSET', KEYS[1], record, string.format('%.0f %d %s %s', bytes, open, user, now))
end
return 'ok'
