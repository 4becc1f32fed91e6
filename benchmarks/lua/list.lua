-- Reads pages at random positions of the table. Arguments: rows, first, seed, size of a page.
local requests, n = {}, 0

function init(args)
  local rows, size = tonumber(args[1]), tonumber(args[4])
  math.randomseed(tonumber(args[3]))
  for i = 1, 5000 do
    local after = math.random(0, math.max(rows - size, 0))
    requests[i] = wrk.format("GET", "/api/v1/users/?limit=" .. size .. "&after=" .. after)
  end
end

function request()
  n = n % #requests + 1
  return requests[n]
end
