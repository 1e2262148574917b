-- Writes a folded state into a projection, unless what is there is newer.
-- KEYS[1] projection. ARGV: kind ("lifecycle" | "position"), seq, bytes, ttl in seconds, fields.
-- Returns 1 if written. One call is atomic, so members of the group cannot undo each other.
local seq = tonumber(redis.call('HGET', KEYS[1], 'seq') or '-1')
if ARGV[1] == 'lifecycle' then
  if seq >= tonumber(ARGV[2]) then return 0 end
else
  -- A position never makes a projection, never follows the end, and never goes back.
  if seq < 0 or redis.call('HGET', KEYS[1], 'status') ~= 'uploading' then return 0 end
  if tonumber(redis.call('HGET', KEYS[1], 'bytes_uploaded')) > tonumber(ARGV[3]) then return 0 end
end
redis.call('HSET', KEYS[1], unpack(ARGV, 5))
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
