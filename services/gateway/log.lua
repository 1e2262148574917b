-- Adds events to the log of an upload: a hash from an event's counter to where it stands, and it.
-- KEYS[1] log. ARGV: ttl in seconds, most events to keep, then counter and value of each. A value
-- begins with the id of the event's entry. An event that is told again keeps its first place.
local function place(value)
  local ms, number = string.match(value, '^(%d+)%-(%d+) ')
  return tonumber(ms) or 0, tonumber(number) or 0
end

local function before(one, other)
  local ms, number = place(one)
  local other_ms, other_number = place(other)
  if ms ~= other_ms then return ms < other_ms end
  return number < other_number
end

for i = 3, #ARGV, 2 do
  local known = redis.call('HGET', KEYS[1], ARGV[i])
  if not known or before(ARGV[i + 1], known) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end

local surplus = redis.call('HLEN', KEYS[1]) - tonumber(ARGV[2])
if surplus > 0 then
  local all, values = redis.call('HGETALL', KEYS[1]), {}
  local counters = {}
  for i = 1, #all, 2 do
    counters[#counters + 1], values[all[i]] = all[i], all[i + 1]
  end
  table.sort(counters, function(a, b) return before(values[a], values[b]) end)
  for i = 1, surplus do redis.call('HDEL', KEYS[1], counters[i]) end
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
