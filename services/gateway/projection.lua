-- Writes one half of a folded state into a projection; what is there and newer stays.
-- KEYS[1] projection. ARGV: half ("upload" | "job"), counter, measure, measure when it was read,
-- ttl in seconds, then the half's fields. The measure is bytes for the upload, and for the job
-- when the worker was last heard (ms).
-- Returns 1 if written. One call is atomic, so members of the group cannot undo each other.
local function stored(name) return redis.call('HGET', KEYS[1], name) or '' end
local function number(name) return tonumber(stored(name)) or -1 end

local half, counter, measure = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local function write()
  redis.call('HSET', KEYS[1], unpack(ARGV, 6))
  redis.call('EXPIRE', KEYS[1], ARGV[5])
end

local function write_job()
  local known, status = number('job_seq'), stored('job_status')
  -- The job's half stands on the upload's, and its end is never overwritten.
  if number('seq') < 0 or status == 'completed' or status == 'failed' then return 0 end
  local heard = number('job_updated_ms')
  if known > counter or (known == counter and counter > 0) then return 0 end
  local kept = {}
  if heard > tonumber(ARGV[4]) then -- a position came between reading and writing
    for _, name in ipairs({'job_progress', 'current', 'total'}) do
      kept[#kept + 1] = name
      kept[#kept + 1] = stored(name)
    end
    if heard > measure then
      for _, name in ipairs({'job_updated', 'job_updated_ms'}) do
        kept[#kept + 1] = name
        kept[#kept + 1] = stored(name)
      end
    end
  end
  write()
  if #kept > 0 and stored('job_status') ~= 'completed' then
    redis.call('HSET', KEYS[1], unpack(kept))
  end
  return 1
end

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

local function write_upload()
  local seq, bytes, percentage = number('seq'), stored('bytes_uploaded'), stored('percentage')
  local further = (tonumber(bytes) or -1) > measure
  local url, at, written =
    stored('redirect_url'), stored('completed_at_ms'), stored('completed_at')
  if seq >= counter then
    if counter > 0 then -- else it is what a job's event has told, and no more than that
      local late = {}
      for i = 6, #ARGV, 2 do late[ARGV[i]] = ARGV[i + 1] end
      keep(late.redirect_url, late.completed_at_ms, late.completed_at)
    end
    return 0
  end
  write()
  keep(url, at, written)
  if further then -- a position came between reading and writing
    redis.call('HSET', KEYS[1], 'bytes_uploaded', bytes, 'percentage', percentage)
  end
  return 1
end

if half == 'job' then return write_job() end
return write_upload()
