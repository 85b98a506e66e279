-- Ends a run of wrk with one line: requests/s, p50 and p99 in ms, requests, errors.
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format("RESULT %.1f %.3f %.3f %d %d\n",
    summary.requests / summary.duration * 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    summary.requests, e.connect + e.read + e.write + e.status + e.timeout))
end
