-- The registry: which workers there are, which needs they serve, and who is called when a job begins to wait.

local WORKERS = PREFIX .. 'workers' -- all of them, by the time of their last word
local MEMORY = PREFIX .. 'memory' -- those not draining, by the GiB that a job can have there; the dead are dropped when met
local RESTING = PREFIX .. 'resting' -- those whose last claim found nothing, by its time; who is called is dropped
local LOOKS = 20 -- at most, at workers that may be called or may have a model loaded
local BELL_S = 5 -- a bell that nobody hears is forgotten
local FACTS = { 'seen_at', 'memory_gb', 'engines', 'models', 'warm', 'draining' }

local function worker_key(name)
  return PREFIX .. 'worker:' .. name
end

-- The jobs that a worker owns.
local function held(name)
  return PREFIX .. 'held:' .. name
end

-- Workers not draining and without a job that have the model loaded, by the time of their last word.
local function idle(model)
  return PREFIX .. 'idle:' .. model
end

-- A worker as it announced itself; nil when it did not.
local function registered(name)
  local values = redis.call('HMGET', worker_key(name), unpack(FACTS))
  local worker = { name = name }
  for number, fact in ipairs(FACTS) do
    worker[fact] = values[number] or nil
  end
  return worker.seen_at and worker
end

-- Enter a worker where placement looks for it, or take it out.
local function place_worker(name)
  local worker = registered(name)
  if not worker then
    return
  end
  if worker.draining then
    redis.call('ZREM', MEMORY, name)
    redis.call('ZREM', RESTING, name)
  else
    redis.call('ZADD', MEMORY, worker.memory_gb, name)
  end
  if worker.draining or redis.call('EXISTS', held(name)) == 1 then
    redis.call('ZREM', idle(worker.warm), name)
  else
    redis.call('ZADD', idle(worker.warm), worker.seen_at, name)
  end
end

local function forget(name)
  local warm = redis.call('HGET', worker_key(name), 'warm')
  if warm then
    redis.call('ZREM', idle(warm), name)
  end
  for _, sorted_by in ipairs({ WORKERS, MEMORY, RESTING }) do
    redis.call('ZREM', sorted_by, name)
  end
  redis.call('DEL', worker_key(name))
end

-- GiB of the largest device among the living that take jobs.
local function largest_gb()
  while true do
    local largest = redis.call('ZREVRANGE', MEMORY, 0, 0, 'WITHSCORES')
    if not largest[1] then
      return 0
    end
    if tonumber(redis.call('ZSCORE', WORKERS, largest[1])) > now - ALIVE_S then
      return tonumber(largest[2])
    end
    redis.call('ZREM', MEMORY, largest[1])
  end
end

local function is_among(all, wanted)
  return wanted == '' or string.find(all, '\n' .. wanted .. '\n', 1, true) ~= nil
end

-- Whether a worker is given jobs with such needs; one that did not announce itself is given all. As in domain/worker.py.
local function is_given(worker, needs)
  if not worker then
    return true
  end
  if worker.draining then
    return false
  end
  local wanted, memory_gb = cjson.decode(needs), tonumber(worker.memory_gb)
  local enough = memory_gb >= wanted.memory_gb or memory_gb >= largest_gb()
  return enough and is_among(worker.engines, wanted.engine) and is_among(worker.models, wanted.model)
end

-- The newest of a set of workers that are living.
local function some_living(key)
  return redis.call('ZREVRANGEBYSCORE', key, '+inf', string.format('(%.17g', now - ALIVE_S), 'LIMIT', 0, LOOKS)
end

-- Whether a job that has just begun to wait is left to an idle worker that has its model loaded, and the worker has not.
local function is_left(worker, needs)
  local model = cjson.decode(needs).model
  if not worker or model == '' or worker.warm == model then
    return false
  end
  for _, name in ipairs(some_living(idle(model))) do
    if is_given(registered(name), needs) then
      return true
    end
  end
  return false
end

-- Call one of these workers, when it rests and serves the needs; whether there was one.
local function call_one(names, needs)
  for _, name in ipairs(names) do
    if redis.call('ZSCORE', RESTING, name) and is_given(registered(name), needs) then
      redis.call('ZREM', RESTING, name)
      redis.call('RPUSH', PREFIX .. 'bell:' .. name, '')
      redis.call('EXPIRE', PREFIX .. 'bell:' .. name, BELL_S)
      return true
    end
  end
  return false
end

-- A job with such needs begins to wait.
local function call_a_worker(needs)
  if redis.call('EXISTS', RESTING) == 1 and not call_one(some_living(idle(cjson.decode(needs).model)), needs) then
    call_one(some_living(RESTING), needs)
  end
end

-- The worker found nothing to do: it may be called from now on.
local function rest(name)
  local worker = registered(name)
  if worker and not worker.draining then
    redis.call('ZADD', RESTING, now_text, name)
  end
end
