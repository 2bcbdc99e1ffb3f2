-- What a worker says: it claims jobs and owns them.

-- The answer without a job may say after how many seconds it is worth while to ask again.
function commands.claim(worker, lease_s, ...)
  for _, id in ipairs(redis.call('SMEMBERS', held(worker))) do
    local job = load(id)
    if job.claim == token then
      renew(job, lease_s)
      return answer(id)
    end
  end
  take_back_ended_leases()
  local id, look_again_s = first_for(worker, { ... })
  if id then
    own(load(id), worker, lease_s)
    return answer(id)
  end
  rest(worker)
  return { 'ok', false, look_again_s and exact(look_again_s) }
end

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

function commands.suspend(id, fence, failure, reason)
  local job, reply = owned(id, fence)
  if not job then
    return reply
  end
  set(job, 'call', token)
  if job.stop == 'cancel' then
    let_go(job)
  else
    set(job, 'error', failure)
    leave(job, 'paused', 'paused', reason)
  end
  return { 'ok' }
end

function commands.release_worker(worker)
  local last, released = string.match(redis.call('HGET', RELEASES, worker) or '', '^(%S+) (%d+)$')
  if last == token then
    return { 'ok', released }
  end
  local jobs = redis.call('SMEMBERS', held(worker))
  for _, id in ipairs(jobs) do
    lose(load(id), worker .. ' ended without a word')
  end
  redis.call('HSET', RELEASES, worker, token .. ' ' .. #jobs)
  return { 'ok', #jobs }
end
