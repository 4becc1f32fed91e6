-- Of 100 requests 70 get, 15 list, 10 create, 4 patch, 1 delete; low ids get most requests (Zipf).
-- Arguments: rows, first, seed, size of a page.
local threads, rows, size, prefix, n, deleted = 0, 0, 0, "", 0, 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init(args)
  rows, size = tonumber(args[1]), tonumber(args[4])
  prefix = args[3] .. "-" .. number .. "-"
  -- After the ids that the warm-up deleted: about one in a hundred of its requests.
  deleted = math.floor(tonumber(args[2]) / 20) + number * 1000000
  math.randomseed(tonumber(args[3]) + number)
  wrk.headers["Content-Type"] = "application/json"
end

-- The density falls as 1/id. Only deletes use the last tenth of the table, so no request gets a 404.
local function any_id()
  return math.floor((rows * 0.9) ^ math.random())
end

function request()
  n = n + 1
  local choice = math.random(100)
  if choice <= 70 then
    return wrk.format("GET", "/api/v1/users/" .. any_id())
  elseif choice <= 85 then
    return wrk.format("GET", "/api/v1/users/?limit=" .. size .. "&after=" .. any_id())
  elseif choice <= 95 then
    local body = '{"email":"mix' .. prefix .. n .. '@example.com","name":"New ' .. n .. '"}'
    return wrk.format("POST", "/api/v1/users/", nil, body)
  elseif choice <= 99 then
    return wrk.format("PATCH", "/api/v1/users/" .. any_id(), nil, '{"name":"Name ' .. prefix .. n .. '"}')
  end
  deleted = deleted + 1
  return wrk.format("DELETE", "/api/v1/users/" .. (math.floor(rows * 0.9) + deleted))
end
