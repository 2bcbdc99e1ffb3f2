-- What is kept of each job, and every way from one state to another. The layout is told in redis.py.
--
-- A line before this file gives PREFIX, GROUP, LANES, JOB_FIELDS, MAX_STALLED, YIELD_AFTER_S and WORKER_LOST.
-- ARGV: the command, the time as text ('' for the server's), the token of the call, and the command's own values.
-- A script cannot be rolled back: whatever can refuse looks first and writes afterwards.

local token = ARGV[3]
local server_time = redis.call('TIME')
local server_ms = server_time[1] * 1000 + math.floor(server_time[2] / 1000)
local now_text = ARGV[2]
if now_text == '' then
  now_text = string.format('%d.%06d', server_time[1], server_time[2])
end
local now = tonumber(now_text)

-- An entry whose lease has just ended is idle for this long; longer than any lease.
local IDLE_AT_END_MS = 24 * 3600 * 1000
local ENDED = { succeeded = true, failed = true, cancelled = true }
local STATE = {
  'kind', 'lane', 'status', 'fence', 'worker', 'stop', 'started_at', 'lease_until', 'waiting_since', 'losses', 'stalled',
  'mark', 'save', 'sample', 'entry', 'call', 'claim', 'yielder', 'yielder_fence', 'yields_for',
}

local function refuse(code, text)
  return { code, text }
end

local function job_key(id)
  return PREFIX .. 'job:' .. id
end

local function stream(lane)
  return PREFIX .. 'running:' .. lane
end

local function waiting(lane)
  return PREFIX .. 'waiting:' .. lane
end

local function places(lane)
  return PREFIX .. 'places:' .. lane
end

local function ended(status, kind)
  return PREFIX .. 'ended:' .. status .. ':' .. kind
end

local UNSERVED = PREFIX .. 'unserved' -- interactive jobs that wait and that no training makes room for, by waiting_since
local PAUSED = PREFIX .. 'paused'
local CLAIMS = PREFIX .. 'claims' -- the last job of each worker
local RELEASES = PREFIX .. 'releases' -- of each worker, the token of the last release_worker and its count

-- The state of a job; one without a status does not exist.
local function load(id)
  local values = redis.call('HMGET', job_key(id), unpack(STATE))
  local job = { id = id }
  for number, name in ipairs(STATE) do
    job[name] = values[number] or nil
  end
  return job
end

local function set(job, ...)
  redis.call('HSET', job_key(job.id), ...)
end

local function event(job, kind, detail)
  redis.call('RPUSH', PREFIX .. 'events:' .. job.id, now_text, kind, detail or '')
  redis.call('PUBLISH', PREFIX .. 'changes:' .. job.id, kind)
end

local function answer(id)
  return { 'ok', redis.call('HMGET', job_key(id), unpack(JOB_FIELDS)) }
end

local function next_place()
  return redis.call('INCR', PREFIX .. 'place')
end

-- Leases. The delivery time of a pending entry is the end of its lease less IDLE_AT_END_MS.

local function milliseconds(seconds)
  return math.floor(seconds * 1000 + 0.5)
end

-- How long an entry is idle at least when its lease ended `ago_s` seconds ago.
local function idle_ms(ago_s)
  return server_ms - milliseconds(now) + IDLE_AT_END_MS + milliseconds(ago_s)
end

-- Move the end of the lease of an entry. FORCE and LASTID deliver to its worker an entry that was not delivered yet: this
-- one, where XREADGROUP would deliver whichever is the next.
local function renew(job, lease_s)
  local lease_until = now + tonumber(lease_s)
  local delivered = milliseconds(lease_until) - IDLE_AT_END_MS
  redis.call('XCLAIM', stream(job.lane), GROUP, job.worker, 0, job.entry, 'TIME', delivered, 'FORCE', 'JUSTID', 'LASTID',
    job.entry)
  set(job, 'lease_until', string.format('%.17g', lease_until))
end

local function is_over(job, ago_s)
  return job.status == 'running' and tonumber(job.lease_until) <= now - ago_s
end

-- Make the stream of a lane and its group where there is none yet.
local function prepare(lane)
  if redis.call('EXISTS', stream(lane)) == 0 then
    redis.call('XGROUP', 'CREATE', stream(lane), GROUP, '0', 'MKSTREAM')
  end
end

local function overdue(lane, ago_s, count)
  prepare(lane)
  return redis.call('XPENDING', stream(lane), GROUP, 'IDLE', idle_ms(ago_s), '-', '+', count)
end

-- The jobs of a lane whose leases ended `ago_s` seconds ago, and that nobody took back yet.
local function silent(lane, ago_s)
  local jobs = {}
  for _, pending in ipairs(overdue(lane, ago_s, 1000)) do
    local entry = redis.call('XRANGE', stream(lane), pending[1], pending[1])[1]
    jobs[#jobs + 1] = load(entry[2][2])
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
      redis.call('ZADD', UNSERVED, job.waiting_since, job.id)
    end
  end
  redis.call('HDEL', job_key(training.id), 'yields_for')
end

-- The only places where a job changes its state.

local function own(job, worker, lease_s)
  redis.call('ZREM', waiting(job.lane), job.id)
  redis.call('ZREM', UNSERVED, job.id)
  job.entry, job.worker = redis.call('XADD', stream(job.lane), '*', 'job', job.id), worker
  local attempt = (job.losses or 0) + 1
  redis.call('HINCRBY', job_key(job.id), 'fence', 1)
  redis.call('HDEL', job_key(job.id), 'yielder', 'yielder_fence', 'yields_for')
  set(job, 'status', 'running', 'worker', worker, 'entry', job.entry, 'attempt', attempt, 'claim', token,
    'started_at', job.started_at or now_text)
  renew(job, lease_s)
  redis.call('HSET', CLAIMS, worker, job.id)
  event(job, 'claimed', 'by ' .. worker .. ', attempt ' .. attempt)
end

-- Nobody has the job any more, and it does not wait either.
local function take_out(job)
  if job.status == 'running' then
    redis.call('XACK', stream(job.lane), GROUP, job.entry)
    redis.call('XDEL', stream(job.lane), job.entry)
    withdraw(job)
    redis.call('HDEL', job_key(job.id), 'worker', 'lease_until', 'stop', 'entry', 'claim')
  elseif job.status == 'queued' then
    redis.call('ZREM', waiting(job.lane), job.id)
    redis.call('ZREM', UNSERVED, job.id)
  elseif job.status == 'paused' then
    redis.call('SREM', PAUSED, job.id)
  else
    redis.call('ZREM', ended(job.status, job.kind), job.id)
  end
end

local function leave(job, status, kind, detail)
  take_out(job)
  set(job, 'status', status, 'waiting_since', now_text)
  if ENDED[status] then
    set(job, 'finished_at', now_text)
    redis.call('ZREM', places(job.lane), job.id)
    redis.call('ZADD', ended(status, job.kind), now_text, job.id)
  elseif status == 'paused' then
    redis.call('SADD', PAUSED, job.id)
  else
    redis.call('ZADD', waiting(job.lane), redis.call('ZSCORE', places(job.lane), job.id), job.id)
    if job.lane == 'interactive' and not is_promised(job) then
      redis.call('ZADD', UNSERVED, now_text, job.id)
    end
  end
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

local function take_back_ended_leases()
  for _, lane in ipairs(LANES) do
    local first = overdue(lane, 0, 1)[1] -- costs a tenth of an XAUTOCLAIM that finds nothing
    local cursor = first and first[1] or '0-0'
    while cursor ~= '0-0' do
      local found = redis.call('XAUTOCLAIM', stream(lane), GROUP, 'lost', idle_ms(0), cursor, 'COUNT', 100)
      cursor = found[1]
      for _, entry in ipairs(found[2]) do
        local job = load(entry[2][2])
        lose(job, 'no word from ' .. job.worker)
      end
    end
  end
end
