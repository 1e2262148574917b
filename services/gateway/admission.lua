-- Gives sockets of one user their places, or prolongs those that they have; see
-- services/gateway/admission.py. The time is the server's, so that clocks do not matter.
-- KEYS[1] the user's places, by when their leases end. ARGV: how many there may be (0: any
-- number), length of a lease in ms, sockets. Returns how many of these sockets have a place now.
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local most, lease, given = tonumber(ARGV[1]), tonumber(ARGV[2]), 0
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local free = most == 0 and #ARGV or most - redis.call('ZCARD', KEYS[1])
for n = 3, #ARGV do
  local known = redis.call('ZSCORE', KEYS[1], ARGV[n])
  if known or free > 0 then
    if not known then free = free - 1 end
    redis.call('ZADD', KEYS[1], now + lease, ARGV[n])
    given = given + 1
  end
end
if given > 0 then redis.call('PEXPIRE', KEYS[1], lease) end
return given
