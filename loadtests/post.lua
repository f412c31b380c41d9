-- For wrk: sends one POST request repeatedly. BODY_FILE names the file with its body; HEADERS, which is optional, has
-- one "Name: value" per line. wrk sends the same bytes each time and runs no Lua under load, unless SEEDED is set: then
-- each request has another seed in its query, which must not be empty.

local function fail(message)
  io.stderr:write("post.lua: " .. message .. "\n")
  os.exit(2)
end

local name = os.getenv("BODY_FILE")
if not name then
  fail("BODY_FILE is not set, expected the path of a file with the request body")
end
local file, problem = io.open(name, "rb")
if not file then
  fail("BODY_FILE cannot be read: " .. problem)
end
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
for header, value in (os.getenv("HEADERS") or ""):gmatch("([^:\n]+): ([^\n]+)") do
  wrk.headers[header] = value
end

if os.getenv("SEEDED") then
  local path, seed = nil, 0
  function request()
    path = path or wrk.path .. "&seed="
    seed = seed + 1
    return wrk.format(nil, path .. seed)
  end
end

function done(summary, latency)
  local errors = summary.errors
  print(string.format(
    'RESULT {"requests": %d, "seconds": %.6f, "p50": %.6f, "p99": %.6f, "max": %.6f, "failed": %d, "refused": %d}',
    summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e6, latency:percentile(99) / 1e6, latency.max / 1e6,
    errors.connect + errors.read + errors.write + errors.timeout, errors.status))
end
