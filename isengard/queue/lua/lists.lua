-- The list of jobs, and the dispatch.

-- Ids with a number each, the smallest number first.
local function sorted(ids, numbers)
  table.sort(ids, function(one, other)
    if numbers[one] == numbers[other] then
      return one < other
    end
    return numbers[one] < numbers[other]
  end)
  return ids
end

local listed = {}

function listed.running()
  local ids, numbers = {}, {}
  for _, lane in ipairs(LANES) do
    for _, entry in ipairs(redis.call('XRANGE', stream(lane), '-', '+')) do
      local id = entry[2][2]
      ids[#ids + 1], numbers[id] = id, tonumber(redis.call('HGET', job_key(id), 'started_at'))
    end
  end
  return sorted(ids, numbers)
end

function listed.queued(limit, all_kinds)
  local ids = {}
  for _, lane in ipairs(LANES) do
    for _, id in ipairs(redis.call('ZRANGE', waiting(lane), 0, all_kinds and limit - 1 or -1)) do
      ids[#ids + 1] = id
    end
  end
  return ids
end

function listed.paused()
  local ids, numbers = redis.call('SMEMBERS', PAUSED), {}
  for _, id in ipairs(ids) do
    numbers[id] = tonumber(redis.call('ZSCORE', places(redis.call('HGET', job_key(id), 'lane')), id))
  end
  return sorted(ids, numbers)
end

-- Ended jobs, the newest first.
local function ended_jobs(statuses, kinds, limit)
  local ids, numbers = {}, {}
  for _, status in ipairs(statuses) do
    for _, kind in ipairs(kinds) do
      local found = redis.call('ZREVRANGE', ended(status, kind), 0, limit - 1, 'WITHSCORES')
      for number = 1, #found, 2 do
        ids[#ids + 1], numbers[found[number]] = found[number], -tonumber(found[number + 1])
      end
    end
  end
  return sorted(ids, numbers)
end

-- asked: {limit, statuses, kinds, all_kinds} as JSON.
function commands.jobs(asked)
  asked = cjson.decode(asked)
  local wanted, kinds, over = {}, {}, {}
  for _, kind in ipairs(asked.kinds) do
    kinds[kind] = true
  end
  for _, status in ipairs(asked.statuses) do
    wanted[status] = true
    if ENDED[status] then
      over[#over + 1] = status
    end
  end
  local answers = {}
  local function add(ids)
    for _, id in ipairs(ids) do
      if #answers >= asked.limit then
        return
      end
      if asked.all_kinds or kinds[redis.call('HGET', job_key(id), 'kind')] then
        answers[#answers + 1] = answer(id)[2]
      end
    end
  end
  for _, status in ipairs({ 'running', 'queued', 'paused' }) do
    if wanted[status] and #answers < asked.limit then
      add(listed[status](asked.limit, asked.all_kinds))
    end
  end
  if #answers < asked.limit then
    add(ended_jobs(over, asked.kinds, asked.limit))
  end
  return { 'ok', answers }
end

return commands[ARGV[1]](unpack(ARGV, 4))
