-- The lines of jobs, their leases, and every way of a job from one state to another.
--
-- A line is a lane and the needs of its jobs: a sorted set of those that wait and a stream of those that run. It is there as
-- long as it holds a job.

-- An entry whose lease has just ended is idle for this long; longer than any lease.
local IDLE_AT_END_MS = 24 * 3600 * 1000

-- Put a line where its first waiting job belongs among the lines of its lane; drop it when it holds no job.
local function sort_line(job)
  local of = line_of(job)
  local first = redis.call('ZRANGE', waiting(of), 0, 0, 'WITHSCORES')
  if first[1] then
    redis.call('ZADD', lines(job.lane), first[2], job.needs)
  elseif redis.call('XLEN', stream(of)) > 0 then
    redis.call('ZADD', lines(job.lane), '+inf', job.needs)
  else
    redis.call('ZREM', lines(job.lane), job.needs)
    redis.call('DEL', stream(of))
  end
end

-- Leases. The delivery time of a pending entry is the end of its lease less IDLE_AT_END_MS.

local function milliseconds(seconds)
  return math.floor(seconds * 1000 + 0.5)
end

-- How long an entry is idle at least when its lease ended `ago_s` seconds ago.
local function idle_ms(ago_s)
  return server_ms - milliseconds(now) + IDLE_AT_END_MS + milliseconds(ago_s)
end

local function exact(number)
  return string.format('%.17g', number)
end

-- Move the end of the lease of an entry. FORCE and LASTID deliver to its worker an entry that was not delivered yet: this
-- one, where XREADGROUP would deliver whichever is the next.
local function renew(job, lease_s)
  local lease_until = now + tonumber(lease_s)
  local delivered = milliseconds(lease_until) - IDLE_AT_END_MS
  redis.call('XCLAIM', stream(line_of(job)), GROUP, job.worker, 0, job.entry, 'TIME', delivered, 'FORCE', 'JUSTID',
    'LASTID', job.entry)
  set(job, 'lease_until', exact(lease_until))
  local earliest = redis.call('GET', EARLIEST)
  if not earliest or lease_until < tonumber(earliest) then
    redis.call('SET', EARLIEST, exact(lease_until))
  end
end

local function is_over(job, ago_s)
  return job.status == 'running' and tonumber(job.lease_until) <= now - ago_s
end

-- Whether some lease may have ended `ago_s` seconds ago: most calls need not look at the streams.
local function some_may_be_over(ago_s)
  local earliest = redis.call('GET', EARLIEST)
  return earliest and tonumber(earliest) <= now - ago_s
end

local function overdue(of, ago_s, count)
  if redis.call('EXISTS', stream(of)) == 0 then
    return {}
  end
  return redis.call('XPENDING', stream(of), GROUP, 'IDLE', idle_ms(ago_s), '-', '+', count)
end

-- The jobs of a lane whose leases ended `ago_s` seconds ago, and that nobody took back yet.
local function silent(lane, ago_s)
  local jobs = {}
  if some_may_be_over(ago_s) then
    for of in all_lines(lane) do
      for _, pending in ipairs(overdue(of, ago_s, 1000)) do
        local entry = redis.call('XRANGE', stream(of), pending[1], pending[1])[1]
        jobs[#jobs + 1] = load(entry[2][2])
      end
    end
  end
  return jobs
end

-- Making room. An interactive job has a yielder, the training asked to make room for it; that one yields_for it.

local function is_promised(job)
  if not job.yielder then
    return false
  end
  local training = load(job.yielder)
  return training.status == 'running' and training.fence == job.yielder_fence and not is_over(training, 0)
end

-- A training will not make room any more: the job it would have made it for needs another one.
local function withdraw(training)
  if not training.yields_for then
    return
  end
  local job = load(training.yields_for)
  if job.yielder == training.id then
    redis.call('HDEL', job_key(job.id), 'yielder', 'yielder_fence')
    if job.status == 'queued' then
      redis.call('ZADD', unserved(job.needs), job.waiting_since, job.id)
    end
  end
  redis.call('HDEL', job_key(training.id), 'yields_for')
end

-- The only places where a job changes its state.

local function own(job, worker, lease_s)
  redis.call('ZREM', waiting(line_of(job)), job.id)
  redis.call('ZREM', unserved(job.needs), job.id)
  if redis.call('EXISTS', stream(line_of(job))) == 0 then
    redis.call('XGROUP', 'CREATE', stream(line_of(job)), GROUP, '0', 'MKSTREAM')
  end
  job.entry, job.worker = redis.call('XADD', stream(line_of(job)), '*', 'job', job.id), worker
  sort_line(job)
  local attempt = (job.losses or 0) + 1
  redis.call('HINCRBY', job_key(job.id), 'fence', 1)
  redis.call('HDEL', job_key(job.id), 'yielder', 'yielder_fence', 'yields_for')
  set(job, 'status', 'running', 'worker', worker, 'ran_on', worker, 'entry', job.entry, 'attempt', attempt,
    'claim', token, 'started_at', job.started_at or now_text)
  renew(job, lease_s)
  redis.call('SADD', held(worker), job.id)
  redis.call('ZREM', RESTING, worker)
  place_worker(worker)
  event(job, 'claimed', 'by ' .. worker .. ', attempt ' .. attempt)
end

-- Nobody has the job any more, and it does not wait either.
local function take_out(job)
  if job.status == 'running' then
    redis.call('XACK', stream(line_of(job)), GROUP, job.entry)
    redis.call('XDEL', stream(line_of(job)), job.entry)
    redis.call('SREM', held(job.worker), job.id)
    place_worker(job.worker)
    withdraw(job)
    redis.call('HDEL', job_key(job.id), 'worker', 'lease_until', 'stop', 'entry', 'claim')
  elseif job.status == 'queued' then
    redis.call('ZREM', waiting(line_of(job)), job.id)
    redis.call('ZREM', unserved(job.needs), job.id)
  elseif job.status == 'paused' then
    redis.call('SREM', PAUSED, job.id)
  else
    redis.call('ZREM', ended(job.status, job.kind), job.id)
  end
end

-- The job waits from now on, at its place.
local function line_up(job)
  redis.call('ZADD', waiting(line_of(job)), redis.call('ZSCORE', places(job.lane), job.id), job.id)
  if job.lane == 'interactive' and not is_promised(job) then
    redis.call('ZADD', unserved(job.needs), now_text, job.id)
  end
  call_a_worker(job.needs)
end

-- Count a job that has just ended, unless no worker ever had it.
local function count_ended(job, status)
  local started_at = redis.call('HGET', job_key(job.id), 'started_at')
  if not started_at then
    return
  end
  local took, up_to = math.max(0, now - tonumber(started_at)), 'inf'
  for _, bound in ipairs(DURATIONS_S) do
    if took <= bound then
      up_to = bound
      break
    end
  end
  local counted = job.kind .. ' ' .. status .. ' '
  redis.call('HINCRBY', TALLY, counted .. up_to, 1)
  redis.call('HINCRBYFLOAT', TALLY, counted .. 'seconds', exact(took))
end

local function leave(job, status, kind, detail)
  take_out(job)
  set(job, 'status', status, 'waiting_since', now_text)
  if ENDED[status] then
    set(job, 'finished_at', now_text)
    redis.call('ZREM', places(job.lane), job.id)
    redis.call('ZADD', ended(status, job.kind), now_text, job.id)
    count_ended(job, status)
  elseif status == 'paused' then
    redis.call('SADD', PAUSED, job.id)
  else
    line_up(job)
  end
  sort_line(job)
  event(job, kind, detail)
end

local function let_go(job)
  if job.stop == 'cancel' then
    leave(job, 'cancelled', 'cancelled')
  elseif job.stop == 'pause' then
    leave(job, 'paused', 'paused')
  else
    leave(job, 'queued', 'queued')
  end
end

local function is_hopeless(job)
  return not job.stop and (job.stalled or 0) + 1 >= MAX_STALLED
end

local function lose(job, why)
  event(job, 'lost', why)
  local times = redis.call('HINCRBY', job_key(job.id), 'stalled', 1)
  redis.call('HINCRBY', job_key(job.id), 'losses', 1)
  if is_hopeless(job) then
    set(job, 'error', (string.gsub(WORKER_LOST, '{times}', times)))
    leave(job, 'failed', 'failed')
  else
    let_go(job)
  end
end

-- The end of the lease that ends first, as text; nil when no job runs.
local function first_end()
  local first
  for _, lane in ipairs(LANES) do
    for of in all_lines(lane) do
      for _, entry in ipairs(redis.call('XRANGE', stream(of), '-', '+')) do
        local lease_until = redis.call('HGET', job_key(entry[2][2]), 'lease_until')
        if not first or tonumber(lease_until) < tonumber(first) then
          first = lease_until
        end
      end
    end
  end
  return first
end

local function take_back_ended_leases()
  if not some_may_be_over(0) then
    return
  end
  for _, lane in ipairs(LANES) do
    for of in all_lines(lane) do
      local first = overdue(of, 0, 1)[1] -- costs a tenth of an XAUTOCLAIM that finds nothing
      local cursor = first and first[1] or '0-0'
      while cursor ~= '0-0' do
        local found = redis.call('XAUTOCLAIM', stream(of), GROUP, 'lost', idle_ms(0), cursor, 'COUNT', 100)
        cursor = found[1]
        for _, entry in ipairs(found[2]) do
          local job = load(entry[2][2])
          lose(job, 'no word from ' .. job.worker)
        end
      end
    end
  end
  local earliest = first_end()
  if earliest then
    redis.call('SET', EARLIEST, earliest)
  else
    redis.call('DEL', EARLIEST)
  end
end
