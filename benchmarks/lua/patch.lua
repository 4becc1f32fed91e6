-- Renames users at random; every request is a real change. Arguments: rows, first, seed.
local rows, prefix, n = 0, "", 0

function init(args)
  rows, prefix = tonumber(args[1]), "Name " .. args[3] .. "-"
  math.randomseed(tonumber(args[3]))
  wrk.headers["Content-Type"] = "application/json"
end

function request()
  n = n + 1
  return wrk.format("PATCH", "/api/v1/users/" .. math.random(rows), nil, '{"name":"' .. prefix .. n .. '"}')
end
