-- Changes what a session's name stands for, unless somebody else has changed it meanwhile.
-- KEYS[1] name. ARGV: what it stands for, what it is to stand for (nothing: it is freed), how
-- long in milliseconds. Returns 1 if it was changed.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then return redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
