-- Reads users by random id. Arguments: rows, first, seed.
local requests, n = {}, 0

function init(args)
  local rows = tonumber(args[1])
  math.randomseed(tonumber(args[3]))
  -- Built beforehand, so that the generator spends its CPU on sending.
  for i = 1, 20000 do
    requests[i] = wrk.format("GET", "/api/v1/users/" .. math.random(rows))
  end
end

function request()
  n = n % #requests + 1
  return requests[n]
end
