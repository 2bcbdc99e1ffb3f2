-- One function for each command. The answer is {'ok', ...}, or a code and a sentence. Every command may be sent again when
-- its answer was lost: the token of the call, kept by the job, tells that it was obeyed already.

local commands = {}

local function not_found(id)
  return refuse('not_found', "there is no job '" .. id .. "'; `python -m isengard jobs list` shows all of them")
end

-- Adding and claiming

function commands.enqueue(id, kind, lane, payload, correlation_id)
  if redis.call('EXISTS', job_key(id)) == 1 then
    if redis.call('HGET', job_key(id), 'made') == token then
      return answer(id)
    end
    return refuse('conflict', "there is a job '" .. id .. "' already")
  end
  local job = { id = id, kind = kind, lane = lane }
  set(job, 'id', id, 'kind', kind, 'lane', lane, 'status', 'queued', 'payload', payload, 'made', token,
    'created_at', now_text, 'waiting_since', now_text)
  if correlation_id ~= '' then
    set(job, 'correlation_id', correlation_id)
  end
  local place = next_place()
  redis.call('ZADD', places(lane), place, id)
  redis.call('ZADD', waiting(lane), place, id)
  if lane == 'interactive' then
    redis.call('ZADD', UNSERVED, now_text, id)
  end
  event(job, 'queued')
  return answer(id)
end

function commands.claim(worker, lease_s, ...)
  local last = redis.call('HGET', CLAIMS, worker)
  local job = last and load(last) or {}
  if job.status == 'running' and job.claim == token then
    renew(job, lease_s)
    return answer(last)
  end
  take_back_ended_leases()
  for _, lane in ipairs({ ... }) do
    local id = redis.call('ZRANGE', waiting(lane), 0, 0)[1]
    if id then
      own(load(id), worker, lease_s)
      return answer(id)
    end
  end
  return { 'ok' }
end

-- What an owner says

-- The job of an owner who speaks with the fence he was given; else nil and the answer.
local function owned(id, fence)
  local job = load(id)
  if job.status == 'running' and job.fence == fence then
    return job
  end
  if job.status and job.call == token then
    return nil, { 'ok' }
  end
  return nil, refuse('lease_lost', 'job ' .. id .. ' has another owner or has ended')
end

-- An interactive job that has waited for long and that no living training makes room for.
local function unserved(training)
  local id = redis.call('ZRANGEBYSCORE', UNSERVED, '-inf', now - YIELD_AFTER_S, 'LIMIT', 0, 1)[1]
  if id then
    return load(id)
  end
  for _, job in ipairs(silent('interactive', YIELD_AFTER_S)) do
    if not is_promised(job) then
      return job
    end
  end
  for _, other in ipairs(silent('training', 0)) do
    local job = other.yields_for and load(other.yields_for) or {}
    local waits = job.status == 'queued' and tonumber(job.waiting_since) <= now - YIELD_AFTER_S
    if waits and job.yielder == other.id and other.id ~= training.id then
      return job
    end
  end
  return nil
end

local function has_to_yield(training)
  local promised = training.yields_for and load(training.yields_for) or {}
  if promised.yielder == training.id and promised.yielder_fence == training.fence then
    local waits = promised.status == 'queued' and tonumber(promised.waiting_since) <= now - YIELD_AFTER_S
    if waits or is_over(promised, YIELD_AFTER_S) then
      return true
    end
  end
  local job = unserved(training)
  if not job then
    return false
  end
  withdraw(training)
  redis.call('ZREM', UNSERVED, job.id)
  set(job, 'yielder', training.id, 'yielder_fence', training.fence)
  set(training, 'yields_for', job.id)
  event(training, 'yield requested', 'for job ' .. job.id)
  return true
end

-- Whether to hand over a wish. It is '1' until then, afterwards the token of the call that took it: who asks again with
-- that token did not hear the answer.
local function hand_over(job, wish, stop)
  if job[wish] ~= '1' and job[wish] ~= token then
    return '0'
  end
  set(job, wish, stop and '1' or token)
  return stop and '0' or '1'
end

function commands.heartbeat(id, fence, lease_s, progress, mark)
  local job, reply = owned(id, fence)
  if not job then
    return reply
  end
  local stop = job.stop
  if not stop and job.lane == 'training' and has_to_yield(job) then
    stop = 'yield'
  end
  renew(job, lease_s)
  if progress ~= '' then
    set(job, 'progress', progress)
    redis.call('PUBLISH', PREFIX .. 'changes:' .. id, 'progress')
  end
  if tonumber(mark) > tonumber(job.mark or 0) then
    set(job, 'mark', mark, 'stalled', 0)
  end
  return { 'ok', stop or '', hand_over(job, 'save', stop), hand_over(job, 'sample', stop) }
end

local function finish(id, fence, status, field, value)
  local job, reply = owned(id, fence)
  if not job then
    return reply
  end
  set(job, field, value, 'call', token)
  leave(job, status, status)
  return { 'ok' }
end

function commands.succeed(id, fence, result)
  return finish(id, fence, 'succeeded', 'result', result)
end

function commands.fail(id, fence, failure)
  return finish(id, fence, 'failed', 'error', failure)
end

function commands.release(id, fence, reason)
  local job, reply = owned(id, fence)
  if not job then
    return reply
  end
  set(job, 'call', token)
  event(job, 'yielded', reason)
  local served = job.yields_for and load(job.yields_for) or {}
  if served.yielder == id then -- this worker claims it next; until then no other training has to yield as well
    set(served, 'waiting_since', now_text)
  end
  let_go(job)
  return { 'ok' }
end

function commands.stopped(id, fence)
  local job, reply = owned(id, fence)
  if not job then
    return reply
  end
  set(job, 'call', token)
  let_go(job)
  return { 'ok' }
end

function commands.release_worker(worker)
  local last, released = string.match(redis.call('HGET', RELEASES, worker) or '', '^(%S+) (%d+)$')
  if last == token then
    return { 'ok', released }
  end
  local count = 0
  for _, lane in ipairs(LANES) do
    prepare(lane)
    for _, pending in ipairs(redis.call('XPENDING', stream(lane), GROUP, '-', '+', 1000, worker)) do
      local entry = redis.call('XRANGE', stream(lane), pending[1], pending[1])[1]
      lose(load(entry[2][2]), worker .. ' ended without a word')
      count = count + 1
    end
  end
  redis.call('HSET', RELEASES, worker, token .. ' ' .. count)
  return { 'ok', count }
end

-- What a user wants

-- A job as a user's change meets it, where an ended lease counts as lost; else nil and the answer.
local function known(id)
  local job = load(id)
  if not job.status then
    return nil, not_found(id)
  end
  if job.call == token then
    return nil, answer(id)
  end
  if is_over(job, 0) then
    local after = { cancel = 'cancelled', pause = 'paused' }
    job.status = after[job.stop] or (is_hopeless(job) and 'failed') or 'queued'
    job.stop = nil
  end
  return job
end

-- The job is about to be changed: its state, once all ended leases are taken back.
local function changing(id)
  take_back_ended_leases()
  redis.call('HSET', job_key(id), 'call', token)
  return load(id)
end

function commands.cancel(id)
  local job, reply = known(id)
  if not job then
    return reply
  end
  if ENDED[job.status] then
    return refuse('conflict', 'job ' .. id .. ' has ended already (' .. job.status .. ') and cannot be cancelled')
  end
  job = changing(id)
  if job.status ~= 'running' then
    leave(job, 'cancelled', 'cancelled')
  elseif job.stop ~= 'cancel' then
    set(job, 'stop', 'cancel')
    event(job, 'cancel requested')
  end
  return answer(id)
end

function commands.pause(id)
  local job, reply = known(id)
  if not job then
    return reply
  end
  if job.status ~= 'queued' and job.status ~= 'running' then
    return refuse('conflict', 'job ' .. id .. ' is ' .. job.status .. '; only a waiting or running job can be paused')
  end
  if job.stop == 'cancel' then
    return refuse('conflict', 'job ' .. id .. ' is being cancelled and cannot be paused any more')
  end
  job = changing(id)
  if job.status == 'queued' then
    leave(job, 'paused', 'paused')
  elseif not job.stop then
    set(job, 'stop', 'pause')
    event(job, 'pause requested')
  end
  return answer(id)
end

function commands.resume(id)
  local job, reply = known(id)
  if not job then
    return reply
  end
  if job.status ~= 'paused' and job.stop ~= 'pause' then
    return refuse('conflict', 'job ' .. id .. ' is ' .. job.status .. ', not paused; there is nothing to resume')
  end
  job = changing(id)
  if job.status == 'paused' then
    leave(job, 'queued', 'resumed')
  else
    redis.call('HDEL', job_key(id), 'stop')
    event(job, 'resumed')
  end
  return answer(id)
end

function commands.requeue(id, payload)
  local job, reply = known(id)
  if not job then
    return reply
  end
  if job.status ~= 'failed' and job.status ~= 'cancelled' then
    return refuse('conflict', 'job ' .. id .. ' is ' .. job.status .. '; only a failed or cancelled job can be queued again')
  end
  job = changing(id)
  redis.call('HDEL', job_key(id), 'started_at', 'finished_at', 'progress', 'error', 'mark', 'stalled', 'save', 'sample')
  set(job, 'payload', payload)
  redis.call('ZADD', places(job.lane), next_place(), id)
  leave(job, 'queued', 'queued', 'again')
  return answer(id)
end

function commands.request(id, ...)
  local job, reply = known(id)
  if not job then
    return reply
  end
  if job.status ~= 'running' then
    return refuse('conflict', 'job ' .. id .. ' is ' .. job.status .. '; only a running job can save or sample')
  end
  job = changing(id)
  for _, wish in ipairs({ ... }) do
    set(job, wish, '1')
    event(job, wish .. ' requested')
  end
  return answer(id)
end

-- Put a job in front of another of its lane: those between the two each take the place of their neighbour.
local function move_before(job, before)
  local all = places(job.lane)
  local from, to = redis.call('ZRANK', all, job.id), redis.call('ZRANK', all, before)
  if from < to then
    to = to - 1
  end
  local found = redis.call('ZRANGE', all, math.min(from, to), math.max(from, to), 'WITHSCORES')
  local ids, scores = {}, {}
  for number = 1, #found, 2 do
    ids[#ids + 1], scores[#scores + 1] = found[number], found[number + 1]
  end
  if from < to then
    table.insert(ids, table.remove(ids, 1))
  else
    table.insert(ids, 1, table.remove(ids))
  end
  for number, id in ipairs(ids) do
    redis.call('ZADD', all, scores[number], id)
    redis.call('ZADD', waiting(job.lane), 'XX', scores[number], id)
  end
end

function commands.move(id, before)
  local jobs = {}
  for number, one in ipairs(before == '' and { id } or { id, before }) do
    local job, reply = known(one)
    if not job then
      return reply
    end
    if job.status ~= 'queued' then
      return refuse('conflict', 'job ' .. one .. ' is ' .. job.status .. '; only waiting jobs have a place')
    end
    jobs[number] = job
  end
  if jobs[2] and jobs[2].lane ~= jobs[1].lane then
    return refuse('conflict', 'jobs ' .. id .. ' (' .. jobs[1].lane .. ') and ' .. before .. ' wait in different lanes')
  end
  local job = changing(id)
  if before == '' then
    local place = next_place()
    redis.call('ZADD', places(job.lane), place, id)
    redis.call('ZADD', waiting(job.lane), place, id)
  else
    move_before(job, before)
  end
  event(job, 'moved', before == '' and 'to the end' or 'before ' .. before)
  return answer(id)
end

function commands.remove(id)
  local removal = PREFIX .. 'removed:' .. token -- the job cannot keep it
  if redis.call('EXISTS', removal) == 1 then
    return { 'ok' }
  end
  local job, reply = known(id)
  if not job then
    return reply
  end
  if not ENDED[job.status] then
    return refuse('conflict', 'job ' .. id .. ' is ' .. job.status .. '; cancel it before you remove it')
  end
  take_out(changing(id))
  redis.call('DEL', job_key(id), PREFIX .. 'events:' .. id)
  redis.call('SET', removal, '', 'EX', 600)
  redis.call('PUBLISH', PREFIX .. 'changes:' .. id, 'removed')
  return { 'ok' }
end

-- Reading

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
