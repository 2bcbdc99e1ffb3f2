-- Whether the server knows, and lets this user call, every command of the queue on its keys: the name of the first that is
-- refused, and the server's reason. ARGV: a part of the names of the keys that are tried.

local function probe(kind)
  return PREFIX .. 'check:' .. ARGV[1] .. ':' .. kind
end

local hash, list, set, zset, text, stream =
  probe('hash'), probe('list'), probe('set'), probe('zset'), probe('text'), probe('stream')
local calls = {
  { 'TIME' },
  { 'HSET', hash, 'a', 1 }, { 'HGET', hash, 'a' }, { 'HMGET', hash, 'a' }, { 'HINCRBY', hash, 'a', 1 },
  { 'HINCRBYFLOAT', hash, 'a', 1 }, { 'HGETALL', hash }, { 'HDEL', hash, 'b' },
  { 'RPUSH', list, 'a' }, { 'LRANGE', list, 0, -1 }, { 'EXPIRE', list, 60 },
  { 'SADD', set, 'a' }, { 'SMEMBERS', set }, { 'SREM', set, 'a' },
  { 'ZADD', zset, 1, 'a' }, { 'ZRANGE', zset, 0, -1 }, { 'ZREVRANGE', zset, 0, -1 }, { 'ZRANGEBYSCORE', zset, 0, 1 },
  { 'ZREVRANGEBYSCORE', zset, 1, 0 },
  { 'ZCARD', zset }, { 'ZRANK', zset, 'a' }, { 'ZSCORE', zset, 'a' }, { 'ZREM', zset, 'a' },
  { 'SET', text, 'a', 'EX', 60 }, { 'GET', text }, { 'EXISTS', text }, { 'INCR', probe('number') },
  { 'XGROUP', 'CREATE', stream, GROUP, '0', 'MKSTREAM' }, { 'XADD', stream, '1-1', 'a', 'b' },
  { 'XCLAIM', stream, GROUP, 'a', 0, '1-1', 'TIME', 1, 'FORCE', 'JUSTID', 'LASTID', '1-1' },
  { 'XPENDING', stream, GROUP, 'IDLE', 1, '-', '+', 1 }, { 'XAUTOCLAIM', stream, GROUP, 'a', 0, '0-0' },
  { 'XRANGE', stream, '-', '+' }, { 'XLEN', stream }, { 'XACK', stream, GROUP, '1-1' }, { 'XDEL', stream, '1-1' },
  { 'PUBLISH', PREFIX .. 'changes:', 'check' },
  { 'DEL', hash, list, set, zset, text, stream, probe('number') },
}
local refused = { '', '' }
for _, call in ipairs(calls) do
  local reply = redis.pcall(unpack(call))
  if type(reply) == 'table' and reply.err and refused[1] == '' then
    refused = { call[1], reply.err }
  end
end
return refused
