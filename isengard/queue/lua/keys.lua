-- The call, the names of the keys, and how one job is read and written: the beginning of every script. The layout of the
-- keys is told in redis.py.
--
-- A line before this file gives PREFIX, GROUP, LANES, JOB_FIELDS, MAX_STALLED, WORKER_LOST, YIELD_AFTER_S, PREFER_WARM_S,
-- ALIVE_S and DURATIONS_S. ARGV: the command, the time as text ('' for the server's), the token of the call, and the command's own values.
-- A script cannot be rolled back: whatever can refuse looks first and writes afterwards.

local token = ARGV[3]
local server_time = redis.call('TIME')
local server_ms = server_time[1] * 1000 + math.floor(server_time[2] / 1000)
local now_text = ARGV[2]
if now_text == '' then
  now_text = string.format('%d.%06d', server_time[1], server_time[2])
end
local now = tonumber(now_text)

local ENDED = { succeeded = true, failed = true, cancelled = true }
local STATE = {
  'kind', 'lane', 'needs', 'status', 'fence', 'worker', 'stop', 'started_at', 'lease_until', 'waiting_since', 'losses',
  'stalled', 'mark', 'save', 'sample', 'entry', 'call', 'claim', 'yielder', 'yielder_fence', 'yields_for',
}

local function refuse(code, text)
  return { code, text }
end

local function job_key(id)
  return PREFIX .. 'job:' .. id
end

local function line(lane, needs)
  return lane .. ':' .. needs
end

local function line_of(job)
  return line(job.lane, job.needs)
end

local function waiting(of)
  return PREFIX .. 'waiting:' .. of
end

local function stream(of)
  return PREFIX .. 'running:' .. of
end

local function lines(lane)
  return PREFIX .. 'lines:' .. lane
end

local function places(lane)
  return PREFIX .. 'places:' .. lane
end

local function unserved(needs)
  return PREFIX .. 'unserved:' .. needs
end

local function ended(status, kind)
  return PREFIX .. 'ended:' .. status .. ':' .. kind
end

local PAUSED = PREFIX .. 'paused'
local TALLY = PREFIX .. 'tally'
local RELEASES = PREFIX .. 'releases' -- of each worker, the token of the last release_worker and its count
local EARLIEST = PREFIX .. 'earliest' -- no lease ends before it

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

-- The needs of the lines of a lane in which a job waits, by their first job's place.
local function waiting_lines(lane)
  return redis.call('ZRANGEBYSCORE', lines(lane), '-inf', '(+inf')
end

-- A function from one line to the next.
local function all_lines(lane)
  local found, number = redis.call('ZRANGE', lines(lane), 0, -1), 0
  return function()
    number = number + 1
    return found[number] and line(lane, found[number])
  end
end

-- One function for each command. The answer is {'ok', ...}, or a code and a sentence. Every command may be sent again when
-- its answer was lost: the token of the call, kept by the job, tells that it was obeyed already.
local commands = {}

local function not_found(id)
  return refuse('not_found', "there is no job '" .. id .. "'; `python -m isengard jobs list` shows all of them")
end
