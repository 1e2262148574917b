-- The state of all leases, changed by one of them at a time. Times are milliseconds of this
-- server's clock. KEYS, all in one slot: 1 what is known of this server's memory, 2 the last
-- pulse of each process, 3 the leases ("process:number fence" by upload), 4 the last fence,
-- 5 the beginning of the names of the lists of questions. ARGV: what to do, the process, the
-- TTL, and what that needs.

local verb, me, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
local FORGET_AFTER = 12 * ttl
local QUESTIONS = 1000

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')

local known = redis.call('HMGET', KEYS[1], 'run', 'memory', 'born', 'since', 'last')
local memory, born, since, last = known[2], tonumber(known[3]), tonumber(known[4]), tonumber(known[5])
if known[1] ~= run then -- wiped, restarted or failed over: leases may have been forgotten
  memory, born, since = run .. '-' .. now, now, now
elseif now < last then -- the clock was set back
  born, since = now, now
elseif now - last > ttl / 2 then -- nobody was served: pulses may be late by as much
  since = now
end
redis.call('HSET', KEYS[1], 'run', run, 'memory', memory, 'born', born, 'since', since, 'last', now)

local function holder_of(lease)
  return string.match(lease, '^[^:]+')
end

local function fence_of(lease)
  return tonumber(string.match(lease, '%d+$'))
end

local function is_silent(process, for_ms)
  local pulse = tonumber(redis.call('HGET', KEYS[2], process))
  return not pulse or math.abs(now - pulse) > for_ms
end

local function raise_fence(fence)
  redis.call('SET', KEYS[4], string.format('%.0f', fence))
end

local function last_fence()
  return tonumber(redis.call('GET', KEYS[4])) or 0
end

-- Forget the processes that ended long ago, with what they held.
local function tidy()
  if now - since <= FORGET_AFTER then
    return
  end
  local ended, count = {}, 0
  for _, process in ipairs(redis.call('HKEYS', KEYS[2])) do
    if is_silent(process, FORGET_AFTER) then
      ended[process], count = true, count + 1
      redis.call('HDEL', KEYS[2], process)
    end
  end
  if count == 0 then
    return
  end
  local all = redis.call('HGETALL', KEYS[3])
  for i = 1, #all, 2 do
    if ended[holder_of(all[i + 1])] then
      redis.call('HDEL', KEYS[3], all[i])
    end
  end
end

local function may_grant(lease)
  if not lease then -- free, if nothing can have been forgotten
    return now - born >= ttl
  end
  local holder = holder_of(lease)
  if holder == me then -- it says itself that it holds it no more
    return true
  end
  return is_silent(holder, ttl) and now - since >= ttl
end

-- acquire <upload> <number> <least fence>: the fence and the memory, or nothing
local function acquire(upload, number, least)
  redis.call('HSET', KEYS[2], me, now)
  if not may_grant(redis.call('HGET', KEYS[3], upload)) then
    return false
  end
  local fence = math.max(now, last_fence(), tonumber(least)) + 1
  raise_fence(fence)
  redis.call('HSET', KEYS[3], upload, me .. ':' .. number .. ' ' .. string.format('%.0f', fence))
  return { string.format('%.0f', fence), memory }
end

-- renew {<upload> <lease> <memory in which it was last confirmed>}: the memory, then the lost
local function renew()
  redis.call('HSET', KEYS[2], me, now)
  local answer = { memory }
  for i = 4, #ARGV, 3 do
    local upload, lease, seen = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    local there = redis.call('HGET', KEYS[3], upload)
    if there ~= lease then
      -- Nobody is granted what is forgotten before the memory is as old as the TTL.
      local forgotten = seen ~= memory and now - born < ttl
      if forgotten and (not there or fence_of(there) < fence_of(lease)) then
        redis.call('HSET', KEYS[3], upload, lease)
        raise_fence(math.max(last_fence(), fence_of(lease)))
      else
        answer[#answer + 1] = upload
      end
    end
  end
  tidy()
  return answer
end

-- release <upload> <lease>
local function release(upload, lease)
  if redis.call('HGET', KEYS[3], upload) == lease then
    redis.call('HDEL', KEYS[3], upload)
  end
  return false
end

-- ask <upload>
local function ask(upload)
  local lease = redis.call('HGET', KEYS[3], upload)
  if lease then
    local questions = KEYS[5] .. holder_of(lease)
    redis.call('RPUSH', questions, upload .. ' ' .. lease)
    redis.call('LTRIM', questions, -QUESTIONS, -1)
    redis.call('PEXPIRE', questions, 2 * ttl)
  end
  return false
end

if verb == 'acquire' then
  return acquire(ARGV[4], ARGV[5], ARGV[6])
elseif verb == 'renew' then
  return renew()
elseif verb == 'release' then
  return release(ARGV[4], ARGV[5])
elseif verb == 'ask' then
  return ask(ARGV[4])
end
redis.call('HDEL', KEYS[2], me) -- leave
return false
