-- The commands of the registry. Each may be obeyed twice: the second time it changes nothing.

-- What is kept of a worker: its own words, and what the queue adds.
local function entry(name)
  local said, seen_at, draining = unpack(redis.call('HMGET', worker_key(name), 'said', 'seen_at', 'draining'))
  local jobs = redis.call('SMEMBERS', held(name))
  table.sort(jobs)
  return { said, seen_at, draining or '0', jobs[1] or false }
end

-- engines, models: each name between line ends.
function commands.announce(name, said, memory_gb, engines, models, warm)
  local before = redis.call('HGET', worker_key(name), 'warm')
  if before then
    redis.call('ZREM', idle(before), name)
  end
  redis.call('HSET', worker_key(name), 'said', said, 'seen_at', now_text, 'memory_gb', memory_gb, 'engines', engines,
    'models', models, 'warm', warm)
  redis.call('ZADD', WORKERS, now_text, name)
  place_worker(name)
  return { 'ok', entry(name) }
end

function commands.leave(name)
  forget(name)
  return { 'ok' }
end

function commands.drain(name, draining)
  if redis.call('EXISTS', worker_key(name)) == 0 then
    return refuse('not_found', "there is no worker '" .. name .. "'; `python -m isengard workers list` shows all of them")
  end
  if draining == '1' then
    redis.call('HSET', worker_key(name), 'draining', '1')
  else
    redis.call('HDEL', worker_key(name), 'draining')
  end
  place_worker(name)
  return { 'ok', entry(name) }
end

function commands.workers()
  local entries = {}
  for number, name in ipairs(redis.call('ZRANGE', WORKERS, 0, -1)) do
    entries[number] = entry(name)
  end
  return { 'ok', entries }
end
