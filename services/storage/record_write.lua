-- Writes the record of a file, unless the file is gone or what is there is as new. A digest
-- that was not known before makes a record newer.
-- KEYS[1] record. ARGV: seq, sha256, fields. Returns 0 if the file is gone, else 1.
local known = redis.call('HMGET', KEYS[1], 'deleted', 'seq', 'sha256')
if known[1] then return 0 end

local seq, known_seq = tonumber(ARGV[1]), tonumber(known[2] or '') or -1
local adds_digest = ARGV[2] ~= '' and (known[3] or '') == ''
if seq > known_seq or (seq == known_seq and adds_digest) then
  redis.call('HSET', KEYS[1], unpack(ARGV, 3))
end
return 1
