-- Reading jobs.

function commands.get(id)
  if redis.call('EXISTS', job_key(id)) == 0 then
    return not_found(id)
  end
  return answer(id)
end

function commands.events(id)
  if redis.call('EXISTS', job_key(id)) == 0 then
    return not_found(id)
  end
  return { 'ok', redis.call('LRANGE', PREFIX .. 'events:' .. id, 0, -1) }
end

-- The list

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

local STEP = 200 -- of places, of which running and paused jobs have some, too

-- For each state a function that goes through its jobs, until there is no room for more: `add` tells.
local listed = {}

local function add_all(ids, add)
  for _, id in ipairs(ids) do
    if not add(id) then
      return
    end
  end
end

function listed.running(add)
  local ids, numbers = {}, {}
  for _, lane in ipairs(LANES) do
    for of in all_lines(lane) do
      for _, entry in ipairs(redis.call('XRANGE', stream(of), '-', '+')) do
        local id = entry[2][2]
        ids[#ids + 1], numbers[id] = id, tonumber(redis.call('HGET', job_key(id), 'started_at'))
      end
    end
  end
  add_all(sorted(ids, numbers), add)
end

function listed.queued(add)
  for _, lane in ipairs(LANES) do
    local from, ids = 0, nil
    repeat
      ids = redis.call('ZRANGE', places(lane), from, from + STEP - 1)
      for _, id in ipairs(ids) do
        if redis.call('HGET', job_key(id), 'status') == 'queued' and not add(id) then
          return
        end
      end
      from = from + STEP
    until #ids < STEP
  end
end

function listed.paused(add)
  local ids, numbers = redis.call('SMEMBERS', PAUSED), {}
  for _, id in ipairs(ids) do
    numbers[id] = tonumber(redis.call('ZSCORE', places(redis.call('HGET', job_key(id), 'lane')), id))
  end
  add_all(sorted(ids, numbers), add)
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
  local function add(id)
    if asked.all_kinds or kinds[redis.call('HGET', job_key(id), 'kind')] then
      answers[#answers + 1] = answer(id)[2]
    end
    return #answers < asked.limit
  end
  for _, status in ipairs({ 'running', 'queued', 'paused' }) do
    if wanted[status] and #answers < asked.limit then
      listed[status](add)
    end
  end
  if #answers < asked.limit then
    add_all(ended_jobs(over, asked.kinds, asked.limit), add)
  end
  return { 'ok', answers }
end

-- What an operator wants to know.

-- Jobs that have not ended: lane, status and number of each; then each count of those that ever did, with its key.
function commands.tally()
  local paused, standing = {}, {}
  for _, id in ipairs(redis.call('SMEMBERS', PAUSED)) do
    local lane = redis.call('HGET', job_key(id), 'lane')
    paused[lane] = (paused[lane] or 0) + 1
  end
  for _, lane in ipairs(LANES) do
    local running = 0
    for of in all_lines(lane) do
      running = running + redis.call('XLEN', stream(of))
    end
    local queued = redis.call('ZCARD', places(lane)) - running - (paused[lane] or 0)
    for status, jobs in pairs({ queued = queued, running = running, paused = paused[lane] }) do
      if jobs > 0 then
        standing[#standing + 1] = { lane, status, jobs }
      end
    end
  end
  return { 'ok', standing, redis.call('HGETALL', TALLY) }
end

function commands.check_writable()
  redis.call('SET', PREFIX .. 'writable', now_text)
  return { 'ok' }
end
