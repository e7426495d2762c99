"""The Lua scripts that run in Redis, one for each atomic operation.

Time is the server's own (``TIME``), so the machines' clocks may differ. Every script that changes a count
gets the id of its request and keeps its answer under it for a while: if it is sent again because the answer
was lost, it returns that answer and changes nothing. Every key has a time to live. A value that cannot be
parsed counts as absent and is overwritten.

Times are integer nanoseconds stored as seconds and a remainder, since Lua's numbers are exact only to 2**53.
"""

from __future__ import annotations

ANSWER_KEPT_MS = 10_000
MOST_FIELDS = 20_000  # of a hash: two for each of ten thousand machines

# KEYS: the limit, the request's answer. ARGV: longest wait (ns), then for requests and for tokens each: ns
# per permit (-1: no limit), burst, permits to charge unconditionally (negative: to return), permits left by
# the provider's headers (-1: unknown), permits needed, permits wanted.
# Answer: 1 or 0 for granted, then for each: permits granted, wait (ns), ns until the bucket is full; at last
# 1 if what was there was damaged.
LIMIT = f"""
local done = redis.call('GET', KEYS[2])
if done then return done end
local time = redis.call('TIME')
local s, n = tonumber(time[1]), tonumber(time[2]) * 1000
local kept = redis.pcall('HMGET', KEYS[1], 'rs', 'rn', 'ts', 'tn')
local damaged = 0
if kept.err then
  redis.call('DEL', KEYS[1])
  kept, damaged = {{}}, 1
end
-- The key lives for longer than any of its times is ahead, so a later time has been damaged.
local life = redis.call('PTTL', KEYS[1])
local patience = tonumber(ARGV[1])
local function bucket(seconds, rest, at)
  local interval, burst = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  if interval < 0 then return 0, 0, 0, 0 end
  local full = interval * burst
  local known = seconds or rest
  seconds, rest = tonumber(seconds or ''), tonumber(rest or '')
  local ahead = 0
  if seconds and rest then ahead = (seconds - s) * 1e9 + rest - n end
  if known and not (seconds and rest and ahead <= life * 1e6) then damaged = 1 end
  if not (ahead > 0 and ahead <= life * 1e6) then ahead = 0 end
  ahead = math.max(0, ahead + tonumber(ARGV[at + 2]) * interval)
  local left = tonumber(ARGV[at + 3])
  if left >= 0 then ahead = math.max(ahead, full - left * interval) end
  local need, wait, give = tonumber(ARGV[at + 4]), 0, 0
  if need > 0 then
    wait = math.max(0, ahead + need * interval - full)
    give = math.max(need, math.min(tonumber(ARGV[at + 5]), math.floor((full - ahead) / interval)))
  end
  return ahead, wait, give, interval
end
local ar, wr, gr, ir = bucket(kept[1], kept[2], 2)
local at, wt, gt, it = bucket(kept[3], kept[4], 8)
local granted = 0
if wr <= patience and wt <= patience then
  granted = 1
  ar, at = ar + gr * ir, at + gt * it
else
  gr, gt = 0, 0
end
local function whole(x) return string.format('%.0f', x) end
local r, t = n + ar, n + at
redis.call('HSET', KEYS[1], 'rs', whole(s + math.floor(r / 1e9)), 'rn', whole(r % 1e9),
           'ts', whole(s + math.floor(t / 1e9)), 'tn', whole(t % 1e9))
redis.call('PEXPIRE', KEYS[1], whole(math.ceil(math.max(ar, at) / 1e6) + 60000))
local answer = {{granted, whole(gr), whole(wr), whole(ar), whole(gt), whole(wt), whole(at), damaged}}
answer = table.concat(answer, ' ')
redis.call('SET', KEYS[2], answer, 'PX', {ANSWER_KEPT_MS})
return answer
"""

# KEYS: the permits of each endpoint. ARGV: this machine, ms of a lease, then for each endpoint: the turn of
# the machine's lease, the limit, the machine's share of it, permits in use in any case, needed, wanted. If
# nothing is known of any machine, or what was known is damaged, none gets more than its share until all had
# time to report what they use.
# Answer for each: permits leased to the machine, 1 if another machine has wanted some recently, the known
# turn if it is later than the given one (nothing was done then), else -1, and 1 if what was there was
# damaged. Of two requests at one turn the larger lease is kept.
PERMITS = f"""
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local life = tonumber(ARGV[2])
local function whole(x) return string.format('%.0f', x) end
local answers = {{}}
for i = 1, #KEYS do
  local function word(n) return tonumber(ARGV[6 * i - 4 + n]) end
  local turn, limit, part, floor, need, want = word(1), word(2), word(3), word(4), word(5), word(6)
  local fields = redis.pcall('HLEN', KEYS[i])
  local known, damaged = {{}}, 0
  if type(fields) == 'number' and fields <= {MOST_FIELDS} then
    known = redis.call('HGETALL', KEYS[i])
  else
    redis.call('DEL', KEYS[i])
    damaged = 1
  end
  local others, mine, seen, wanted, new, unknown = 0, 0, -1, 0, false, true
  for j = 1, #known, 2 do
    local field = known[j]
    local count, till, at = string.match(known[j + 1], '^(%d+) (%d+) (%d+)$')
    count, till, at = tonumber(count or ''), tonumber(till or ''), tonumber(at or '')
    if count and till <= now then
      redis.call('HDEL', KEYS[i], field)
    elseif not count or count > 4096 or till > now + 2 * life or at > 9e15
       or (field == ARGV[1] and at > turn + 1e9) then
      redis.call('HDEL', KEYS[i], field)
      damaged = 1
    elseif field == 'new' then
      new = true
    elseif field == ARGV[1] then
      mine, seen, unknown = count, at, false
    elseif string.sub(field, 1, 5) == 'want:' then
      if field ~= 'want:' .. ARGV[1] then wanted = 1 end
    else
      others, unknown = others + count, false
    end
  end
  if (unknown or damaged == 1) and not new then
    redis.call('HSET', KEYS[i], 'new', '0 ' .. whole(now + 6000) .. ' 0')
    new = true
  end
  if new then want = math.min(want, part) end
  if seen > turn then
    answers[i] = '0 0 ' .. whole(seen) .. ' ' .. damaged
  else
    local give = math.max(floor, math.min(want, limit - others))
    if need > give then
      redis.call('HSET', KEYS[i], 'want:' .. ARGV[1], '0 ' .. whole(now + 3000) .. ' 0')
    end
    local keep = give
    if seen == turn then keep = math.max(give, mine) end
    redis.call('HSET', KEYS[i], ARGV[1], table.concat({{whole(keep), whole(now + life), whole(turn)}}, ' '))
    redis.call('PEXPIRE', KEYS[i], whole(life + 60000))
    answers[i] = whole(give) .. ' ' .. wanted .. ' -1 ' .. damaged
  end
end
return answers
"""

# KEYS: machines, news, the version of the news. ARGV: this machine, the version it knows, ms until a silent
# machine is forgotten.
# Answer: server time (ms), number of machines, version, a key with damage or '', and if the version is new,
# all news as field and value.
BEAT = f"""
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local damaged = ''
local function all_of(key)
  local fields = redis.pcall('HLEN', key)
  if type(fields) == 'number' and fields <= {MOST_FIELDS} then return redis.call('HGETALL', key) end
  redis.call('DEL', key)
  damaged = key
  return {{}}
end
local known = all_of(KEYS[1])
local count = 1
for i = 1, #known, 2 do
  local seen = tonumber(known[i + 1])
  if known[i] ~= ARGV[1] then
    if seen and seen <= now + 1000 and now - seen < tonumber(ARGV[3]) then
      count = count + 1
    else
      if not seen then damaged = KEYS[1] end
      redis.call('HDEL', KEYS[1], known[i])
    end
  end
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
local version = redis.pcall('GET', KEYS[3])
if type(version) ~= 'string' or #version > 100 then version = '' end
local answer = {{string.format('%.0f', now), tostring(count), version, ''}}
if version ~= ARGV[2] then
  local news = all_of(KEYS[2])
  for i = 1, #news, 2 do
    if #news[i] <= 1000 and #news[i + 1] <= 200 then
      answer[#answer + 1], answer[#answer + 2] = news[i], news[i + 1]
    else
      redis.call('HDEL', KEYS[2], news[i])
      damaged = KEYS[2]
    end
  end
end
answer[4] = damaged
return answer
"""

# KEYS: news, version. ARGV: the new version, field, word, ms for which it holds, code.
TELL = """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local until_ms = string.format('%.0f', now + tonumber(ARGV[4]))
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], ARGV[2], table.concat({ARGV[3], until_ms, ARGV[5], ARGV[1]}, ' '))
local life = math.max(redis.call('PTTL', KEYS[1]), tonumber(ARGV[4]) + 3600000)
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', life))
redis.call('SET', KEYS[2], ARGV[1], 'PX', string.format('%.0f', life))
return 1
"""

# KEYS: the probe. ARGV: this machine, ms it may take. Answer: 0, or the ms after which to ask again.
PROBE = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 0 end
local left = redis.call('PTTL', KEYS[1])
if left < 0 or left > 86400000 then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return 0
end
return math.max(left, 1)
"""

# KEYS: the probe. ARGV: this machine, ms it may take from now on, if that is longer.
EXTEND = """
if redis.pcall('GET', KEYS[1]) == ARGV[1] and redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 1
"""

# KEYS: the probe. ARGV: this machine.
PROBED = """
local owner = redis.pcall('GET', KEYS[1])
if owner == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
"""

# KEYS: the money of a budget's window, the request's answer. ARGV: this machine, the life (id) of the key
# that it knows ('' if none), spent by the ledger (-1: not read yet), what the machine still holds, to charge
# unconditionally (negative: to return), limit, needed, wanted, ms to live, the id of a new life.
# Answer: word (missing, damaged, granted, refused), granted, committed by all, life.
MONEY = f"""
local done = redis.call('GET', KEYS[2])
if done then return done end
local mine = 'm:' .. ARGV[1]
-- As HINCRBY reads them, so that it cannot fail below.
local function nano(text)
  if type(text) == 'string' and #text < 20 and string.match(text, '^%d+$') then
    local value = tonumber(text)
    if value <= 4e18 then return value end
  end
end
local kind = redis.call('TYPE', KEYS[1]).ok
local there = kind ~= 'none'
local fits = kind == 'hash' and redis.call('HLEN', KEYS[1]) <= {MOST_FIELDS}
if fits then
  -- A machine's field that cannot be read is money that somebody may have spent.
  local known = redis.call('HGETALL', KEYS[1])
  local base, life = false, false
  for i = 1, #known, 2 do
    local field, value = known[i], known[i + 1]
    if field == 'life' then
      life = #value <= 64 and string.match(value, '^[%w-]+$')
    else
      fits = fits and nano(value)
      base = base or field == 'base'
    end
  end
  fits = fits and base and life
end
local life = ARGV[10]
if fits then
  life = redis.call('HGET', KEYS[1], 'life')
else
  if tonumber(ARGV[3]) < 0 then
    if there then return 'damaged 0 0 -' end
    return 'missing 0 0 -'
  end
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'base', ARGV[3], 'life', life)
end
if ARGV[2] ~= life and tonumber(ARGV[4]) > 0 then redis.call('HSETNX', KEYS[1], mine, ARGV[4]) end
local held = nano(redis.call('HGET', KEYS[1], mine))
if not held then
  redis.call('HSET', KEYS[1], mine, '0')
  held = 0
end
local charge = math.max(tonumber(ARGV[5]), -held)
redis.call('HINCRBY', KEYS[1], mine, string.format('%.0f', charge))
local all = redis.call('HGETALL', KEYS[1])
local total = 0
for i = 1, #all, 2 do
  if all[i] ~= 'life' then total = total + (nano(all[i + 1]) or 0) end
end
local room = tonumber(ARGV[6]) - total
if total > 9e15 then room = room - 1024 * #all end
local need, want, word, give = tonumber(ARGV[7]), tonumber(ARGV[8]), 'granted', 0
if need > room then
  word = 'refused'
elseif want > 0 then
  give = math.max(0, math.min(want, room))
  redis.call('HINCRBY', KEYS[1], mine, string.format('%.0f', give))
end
redis.call('PEXPIRE', KEYS[1], ARGV[9])
local function whole(x) return string.format('%.0f', x) end
local answer = table.concat({{word, whole(give), whole(total + give), life}}, ' ')
redis.call('SET', KEYS[2], answer, 'PX', {ANSWER_KEPT_MS})
return answer
"""
