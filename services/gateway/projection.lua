-- Writes a folded state into a projection; what is there and newer stays.
-- KEYS[1] projection. ARGV: kind ("lifecycle" | "position"), seq, bytes, ttl in seconds, fields.
-- Returns 1 if written. One call is atomic, so members of the group cannot undo each other.
local function stored(name) return redis.call('HGET', KEYS[1], name) or '' end
local function number(name) return tonumber(stored(name)) or -1 end
local seq, bytes, percentage = number('seq'), number('bytes_uploaded'), stored('percentage')

if ARGV[1] == 'position' then
  -- A position never makes a projection, never follows the end, and never goes back.
  if seq ~= tonumber(ARGV[2]) or stored('status') ~= 'uploading' then return 0 end
  if bytes > tonumber(ARGV[3]) then return 0 end
elseif seq >= tonumber(ARGV[2]) then
  -- Late: another member was faster with what came after. Only a completion says when it
  -- was and where to go next, so that much of it is still taken.
  if seq == tonumber(ARGV[2]) then return 0 end
  local late = {}
  for i = 5, #ARGV, 2 do late[ARGV[i]] = ARGV[i + 1] end
  if stored('redirect_url') == '' and late.redirect_url ~= '' then
    redis.call('HSET', KEYS[1], 'redirect_url', late.redirect_url)
  end
  local at, known = tonumber(late.completed_at_ms), tonumber(stored('completed_at_ms'))
  if at and (not known or at < known) then
    redis.call('HSET', KEYS[1],
      'completed_at', late.completed_at, 'completed_at_ms', late.completed_at_ms)
  end
  return 0
end

redis.call('HSET', KEYS[1], unpack(ARGV, 5))
if bytes > tonumber(ARGV[3]) then -- a position came between reading and writing
  redis.call('HSET', KEYS[1], 'bytes_uploaded', bytes, 'percentage', percentage)
end
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
