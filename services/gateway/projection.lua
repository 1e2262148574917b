-- Writes a folded state into a projection; what is there and newer stays.
-- KEYS[1] projection. ARGV: kind ("lifecycle" | "position"), seq, bytes, ttl in seconds, fields.
-- Returns 1 if written. One call is atomic, so members of the group cannot undo each other.
local function stored(name) return redis.call('HGET', KEYS[1], name) or '' end
local function number(name) return tonumber(stored(name)) or -1 end

-- Only a completion tells when it was and where to go next. Whoever has folded it, before or
-- after what followed it, that much is kept.
local function keep(url, at, written)
  if url ~= '' and stored('redirect_url') == '' then
    redis.call('HSET', KEYS[1], 'redirect_url', url)
  end
  local ms, known = tonumber(at), tonumber(stored('completed_at_ms'))
  if ms and (not known or ms < known) then
    redis.call('HSET', KEYS[1], 'completed_at', written, 'completed_at_ms', at)
  end
end

local seq, bytes, percentage = number('seq'), stored('bytes_uploaded'), stored('percentage')
local further = (tonumber(bytes) or -1) > tonumber(ARGV[3])
local url, at, written = stored('redirect_url'), stored('completed_at_ms'), stored('completed_at')
if ARGV[1] == 'position' then
  -- A position never makes a projection, never follows the end, and never goes back.
  if seq ~= tonumber(ARGV[2]) or stored('status') ~= 'uploading' then return 0 end
  if further then return 0 end
elseif seq >= tonumber(ARGV[2]) then
  local late = {}
  for i = 5, #ARGV, 2 do late[ARGV[i]] = ARGV[i + 1] end
  keep(late.redirect_url, late.completed_at_ms, late.completed_at)
  return 0
end

redis.call('HSET', KEYS[1], unpack(ARGV, 5))
keep(url, at, written)
if further then -- a position came between reading and writing
  redis.call('HSET', KEYS[1], 'bytes_uploaded', bytes, 'percentage', percentage)
end
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
