-- Puts sessions where they belong among their tenant's sets, in whatever order it is told.
-- KEYS: uploading, completed, error, cancelled. ARGV: now in ms, TTL in seconds, then pairs of
-- a member and the number of its set; 0 takes it out of all.
local function has_ended(member)
  for i = 2, #KEYS do
    if redis.call('ZSCORE', KEYS[i], member) then return true end
  end
  return false
end

for i = 3, #ARGV, 2 do
  local member, set = ARGV[i], tonumber(ARGV[i + 1])
  -- Another member of the group may have been faster with the end, which is never undone.
  if set ~= 1 or not has_ended(member) then
    for other = 1, #KEYS do
      if other ~= set then redis.call('ZREM', KEYS[other], member) end
    end
    if set > 0 then redis.call('ZADD', KEYS[set], 'GT', ARGV[1], member) end
  end
end
for i = 1, #KEYS do redis.call('EXPIRE', KEYS[i], ARGV[2]) end
return 0
