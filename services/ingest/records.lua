-- Writes a session record, unless what is there is newer: of two processes that know of an
-- upload, the one that knows less must not have the last word.
-- KEYS[1] record. ARGV: seq, offset, ttl in seconds, fields. Returns 1 if written.
local function number(name) return tonumber(redis.call('HGET', KEYS[1], name) or '') or -1 end

local seq, offset = tonumber(ARGV[1]), tonumber(ARGV[2])
if number('seq') > seq or (number('seq') == seq and number('offset') > offset) then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
