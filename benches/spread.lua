-- Spreads the requests of a run of wrk over N tunnels: "-- HOST-PATTERN N", in which # is the number.
dofile(os.getenv("LAB_BENCHES") .. "/wrk.lua")

local requests, last = {}, 0

init = function(args)
  for number = 0, args[2] - 1 do
    wrk.headers["Host"] = args[1]:gsub("#", number)
    requests[number] = wrk.format("GET")
  end
  wrk.headers["Host"] = nil
end

request = function()
  last = (last + 1) % (#requests + 1)
  return requests[last]
end
