-- Creates users; every address is used once. Arguments: rows, first, seed.
local threads, prefix, n = 0, "", 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init(args)
  prefix = "new" .. args[3] .. "-" .. number .. "-"
  wrk.headers["Content-Type"] = "application/json"
end

function request()
  n = n + 1
  local body = '{"email":"' .. prefix .. n .. '@example.com","name":"New ' .. n .. '"}'
  return wrk.format("POST", "/api/v1/users/", nil, body)
end
