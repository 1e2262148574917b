-- Takes one token out of a bucket; see shared/token_bucket.py. The time is the server's, so
-- that the clocks of the processes do not matter.
-- KEYS[1] bucket. ARGV: rate per second, burst. Returns {allowed, remaining, wait in ms}.
local rate, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
local was = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = burst
if was[1] then
  tokens = math.min(burst, tonumber(was[1]) + math.max(now - tonumber(was[2]), 0) * rate)
end
local allowed = tokens >= 1
if allowed then tokens = tokens - 1 end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', tokens), 'at', string.format('%.6f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil(burst / rate * 1000) + 1000)
return {allowed and 1 or 0, math.floor(tokens), allowed and 0 or math.ceil((1 - tokens) / rate * 1000)}
