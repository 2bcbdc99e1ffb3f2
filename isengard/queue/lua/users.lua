-- What users want of jobs.

function commands.enqueue(id, kind, lane, needs, payload, correlation_id)
  if redis.call('EXISTS', job_key(id)) == 1 then
    if redis.call('HGET', job_key(id), 'made') == token then
      return answer(id)
    end
    return refuse('conflict', "there is a job '" .. id .. "' already")
  end
  local job = { id = id, kind = kind, lane = lane, needs = needs }
  set(job, 'id', id, 'kind', kind, 'lane', lane, 'needs', needs, 'status', 'queued', 'payload', payload, 'made', token,
    'created_at', now_text, 'waiting_since', now_text)
  if correlation_id ~= '' then
    set(job, 'correlation_id', correlation_id)
  end
  redis.call('ZADD', places(lane), next_place(), id)
  line_up(job)
  sort_line(job)
  event(job, 'queued')
  return answer(id)
end

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
    redis.call('HDEL', job_key(id), 'error')
    leave(job, 'queued', 'resumed')
  else
    redis.call('HDEL', job_key(id), 'stop')
    event(job, 'resumed')
  end
  return answer(id)
end

function commands.requeue(id, payload, needs)
  local job, reply = known(id)
  if not job then
    return reply
  end
  if job.status ~= 'failed' and job.status ~= 'cancelled' then
    return refuse('conflict', 'job ' .. id .. ' is ' .. job.status .. '; only a failed or cancelled job can be queued again')
  end
  job = changing(id)
  redis.call('HDEL', job_key(id), 'started_at', 'finished_at', 'progress', 'error', 'mark', 'stalled', 'save', 'sample')
  set(job, 'payload', payload, 'needs', needs)
  job.needs = needs
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
  local moved = {}
  for number, id in ipairs(ids) do
    local status, needs = unpack(redis.call('HMGET', job_key(id), 'status', 'needs'))
    redis.call('ZADD', all, scores[number], id)
    if status == 'queued' then
      redis.call('ZADD', waiting(line(job.lane, needs)), scores[number], id)
      moved[needs] = true
    end
  end
  for needs in pairs(moved) do
    sort_line({ lane = job.lane, needs = needs })
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
    redis.call('ZADD', waiting(line_of(job)), place, id)
    sort_line(job)
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
