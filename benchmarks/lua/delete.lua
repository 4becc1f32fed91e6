-- Deletes users, each once: first, first + 1, … Arguments: rows, first, seed.
local threads, id = 0, 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
  thread:set("threads", threads)
end

function init(args)
  id = tonumber(args[2]) + number * 1000000
end

function request()
  id = id + 1
  return wrk.format("DELETE", "/api/v1/users/" .. id - 1)
end
