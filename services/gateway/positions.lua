-- Writes positions into the projections of uploads, or of their jobs. A position never makes a
-- projection, never follows an end, and never goes back; what it does not tell of stays.
-- KEYS: projections. ARGV: "upload" or "job"; milliseconds; what is told, packed, one a key.
-- Returns the numbers, from 1, of those written that have fewer milliseconds left to live, and
-- of those that there are not.
local function percentage(offset, size)
  if not size or size <= 0 then return '0.0' end
  local percent = tonumber(string.format('%.2f', 100 * offset / size))
  local text = string.format('%.14g', math.min(percent, 99.99))
  return string.find(text, '.', 1, true) and text or text .. '.0'
end

local function write_upload(key, told)
  local offset, at, size, speed, estimate, written = unpack(told)
  local was = redis.call('HMGET', key, 'status', 'bytes_uploaded', 'last_updated_ms',
    'last_updated', 'total_bytes')
  if not was[1] then return nil end
  local bytes, heard = tonumber(was[2]), tonumber(was[3])
  if was[1] ~= 'uploading' or not bytes or not heard then return false end
  local reached, made = tonumber(offset), tonumber(at)
  -- At the same byte a later position counts: it says that the upload rests.
  if reached < bytes or (reached == bytes and made <= heard) then return false end
  if made < heard then at, written = was[3], was[4] end
  if size == '' then size = was[5] or '' end
  redis.call('HSET', key, 'bytes_uploaded', offset, 'total_bytes', size,
    'percentage', percentage(reached, tonumber(size)), 'upload_speed', speed,
    'estimated_completion', estimate, 'last_updated', written, 'last_updated_ms', at)
  return true
end

local function write_job(key, told)
  local seq, at, progress, stage, message, current, total, written = unpack(told)
  local was = redis.call('HMGET', key, 'status', 'job_status', 'job_seq', 'job_updated_ms',
    'job_updated', 'job_progress')
  if not was[1] then return nil end
  if was[1] == 'deleted' or was[2] == 'completed' or was[2] == 'failed' then return false end
  local known, heard = tonumber(was[3]) or 0, tonumber(was[4]) or 0
  local counter, made = tonumber(seq), tonumber(at)
  local further = made > heard
    or (made == heard and tonumber(progress) > (tonumber(was[6]) or 0))
  if counter < known or (counter == known and not further) then return false end
  if made < heard then at, written = was[4], was[5] end
  redis.call('HSET', key, 'job_status', 'in_progress', 'job_progress', progress,
    'message', message, 'current', current, 'total', total,
    'job_updated', written, 'job_updated_ms', at)
  if stage ~= '' then redis.call('HSET', key, 'stage', stage) end
  return true
end

local write, due, unknown = write_upload, {}, {}
if ARGV[1] == 'job' then write = write_job end
local rows, least = cmsgpack.unpack(ARGV[3]), tonumber(ARGV[2])
for i, key in ipairs(KEYS) do
  local written = write(key, rows[i])
  if written == nil then
    unknown[#unknown + 1] = i
  elseif written and redis.call('PTTL', key) < least then
    due[#due + 1] = i
  end
end
return {due, unknown}
