-- Replaces the record of a file by a word that it is gone, which outlives all old news of it.
-- KEYS[1] record. ARGV: seconds for which the word stays.
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'deleted', 1)
return redis.call('EXPIRE', KEYS[1], ARGV[1])
