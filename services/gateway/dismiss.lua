-- Puts a tombstone in the place of a projection. KEYS[1] projection. ARGV: how long it stays, in
-- seconds, then its fields. Returns 1, or 0 if the projection has been deleted already.
if redis.call('HGET', KEYS[1], 'status') == 'deleted' then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
