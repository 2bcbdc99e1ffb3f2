-- Which job a worker is given, and which training makes room for whom.

-- The first job of a line that the worker is given, or nil and after how many seconds it may be.
local function first_of(lane, needs, worker)
  local of = waiting(line(lane, needs))
  if lane ~= 'interactive' or not is_left(worker, needs) then
    return redis.call('ZRANGE', of, 0, 0)[1]
  end
  local soonest
  for _, id in ipairs(redis.call('ZRANGE', of, 0, LOOKS - 1)) do
    local left_s = redis.call('HGET', job_key(id), 'waiting_since') + PREFER_WARM_S - now
    if left_s <= 0 then
      return id
    end
    soonest = math.min(soonest or left_s, left_s)
  end
  return nil, soonest
end

-- The job that a worker is given, or nil and, when some are left to others for a moment, for how many seconds at most.
local function first_for(name, lanes)
  local worker, look_again_s = registered(name), nil
  for _, lane in ipairs(lanes) do
    for _, needs in ipairs(waiting_lines(lane)) do
      if is_given(worker, needs) then
        local id, left_s = first_of(lane, needs, worker)
        if id then
          return id
        end
        look_again_s = math.min(look_again_s or left_s, left_s)
      end
    end
  end
  return nil, look_again_s
end

-- Whether a job waits since long for a worker.
local function waits_for_long(job)
  local queued = job.status == 'queued' and tonumber(job.waiting_since) <= now - YIELD_AFTER_S
  return queued or is_over(job, YIELD_AFTER_S)
end

-- An interactive job that has waited for long, that the worker of a training is given, and that no living training makes
-- room for.
local function unserved_by_others(training, worker)
  for _, needs in ipairs(waiting_lines('interactive')) do
    if is_given(worker, needs) then
      local id = redis.call('ZRANGEBYSCORE', unserved(needs), '-inf', now - YIELD_AFTER_S, 'LIMIT', 0, 1)[1]
      if id then
        return load(id)
      end
    end
  end
  for _, job in ipairs(silent('interactive', YIELD_AFTER_S)) do
    if is_given(worker, job.needs) and not is_promised(job) then
      return job
    end
  end
  for _, other in ipairs(silent('training', 0)) do
    local job = other.yields_for and load(other.yields_for) or {}
    local is_free = job.yielder == other.id and other.id ~= training.id
    if is_free and job.status == 'queued' and waits_for_long(job) and is_given(worker, job.needs) then
      return job
    end
  end
  return nil
end

local function has_to_yield(training)
  local worker = registered(training.worker)
  local promised = training.yields_for and load(training.yields_for) or {}
  if promised.yielder == training.id and promised.yielder_fence == training.fence then
    if not is_given(worker, promised.needs) then
      withdraw(training)
    elseif waits_for_long(promised) then
      return true
    end
  end
  local job = unserved_by_others(training, worker)
  if not job then
    return false
  end
  withdraw(training)
  redis.call('ZREM', unserved(job.needs), job.id)
  set(job, 'yielder', training.id, 'yielder_fence', training.fence)
  set(training, 'yields_for', job.id)
  event(training, 'yield requested', 'for job ' .. job.id)
  return true
end
