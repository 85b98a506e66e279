# What tunnels cost, and what more of them cost: on one loopback, each row with processes of its own.
# Sourced by scripts/bench.
#
# Of every peer, with its own programs: start-up (from the start of the agent, and of qtunnel's edge, to the
# first answer), idle (memory once a request was answered), websockets-1000 (memory for each connection
# that was upgraded, used once, and is silent), slow-500 (visitors that read 10 KB/s, and 100 requests a second of others).
# Of qtunnel alone, with agents of benches/agents.rs: tunnels-N (requests spread over N names of as few
# agents as may hold them), agents-N (over N agents with a name each, and the edge's memory for each),
# workers-N (over 16 agents, with an edge of N workers), and streams-N (beside N idle WebSockets of 16 agents, and
# the memory for each). hostile-STATE: one address that brings connections into a state in which they cost the edge
# something, and comes back whenever it is sent away (attack of benches/lab); others' p99 before and meanwhile, and the
# edge's memory before, at its peak, and a minute after the attack.

SCALE_PEERS=(qtunnel qtunnel-websocket rathole-tls rusnel)
SCALE_ROWS=(start-up idle websockets-1000 slow-500)
SCALE_OWN_ROWS=(tunnels-1 tunnels-10 tunnels-100 tunnels-1000 agents-1 agents-10 agents-100 agents-1000
  workers-1 workers-2 workers-4 streams-1 streams-10 streams-100 streams-1000 streams-10000)
TUNNELS_PER_AGENT=100 # as many as an edge grants
WORKER_AGENTS=16      # enough for every worker to get its share
STREAM_AGENTS=16      # 10,000 streams in sessions of 1,024
STARTS=5
# State and number of connections; for hostile-handshakes, handshakes per second.
HOSTILE_ROWS=(hostile-tls-handshake:500 hostile-head:500 hostile-body:500 hostile-unread:500 hostile-http2-preface:500
  hostile-http2-idle:500 hostile-http2-head:100 hostile-http2-body:100 hostile-http2-unread:100
  hostile-http2-no-window:100 hostile-handshakes:2000)
HOSTILE_ADDRESS=127.0.0.66
HOSTILE_REST=${HOSTILE_REST:-60} # seconds after the attack, until memory is looked at again

bench_scale() {
  local nth row
  # A connection takes one descriptor of each process, and an edge leaves a fifth of its own for other things.
  ulimit -Sn "$(ulimit -Hn)"
  [ "$(ulimit -n)" = unlimited ] || [ "$(ulimit -n)" -ge 13000 ] ||
    say "this shell may have $(ulimit -n) descriptors (ulimit -Hn): 10,000 streams will fail"
  begin_results scale
  SCENE=scale CONGESTION=cubic
  for ((ROUND = 1; ROUND <= ROUNDS; ROUND++)); do
    for ((nth = 0; nth < ${#PEER_LIST[@]}; nth++)); do
      PEER=${PEER_LIST[(nth + ROUND - 1) % ${#PEER_LIST[@]}]}
      clean_ground $CONGESTION
      origin_up
      for row in "${SCALE_ROWS[@]}"; do
        wanted "$row" && scale_row "$row"
      done
      for row in "${SCALE_OWN_ROWS[@]}"; do
        wanted "$row" && [[ $PEER = qtunnel* ]] && scale_own_row "$row"
      done
      for row in "${HOSTILE_ROWS[@]}"; do
        wanted "${row%:*}" && [ "$PEER" = qtunnel ] && scale_hostile "${row%:*}" "${row#*:}"
      done
      halt origin
    done
  done
}

scale_row() { # scale_row ROW
  if [ "$1" = start-up ]; then
    scale_starts
  elif peer_start "$PEER"; then
    case $1 in
    idle) scale_idle ;;
    websockets-*) scale_websockets "$1" "${1#*-}" ;;
    slow-*) scale_slow "$1" "${1#*-}" ;;
    esac
  else
    emit failed started=0
  fi
  peer_stop
}

# TIMED names the process that spawn does not leave running, but only times: see ground.sh.
scale_starts() {
  local nth
  for ((nth = 0; nth < STARTS; nth++)); do
    TIMED=agent TIMED_MS=
    peer_spawn "$PEER"
    TIMED=
    emit start-up agent_ms="${TIMED_MS:-nan}"
    peer_stop
  done
  [[ $PEER = qtunnel* ]] || return
  HOST=nobody.qt.test # requests for a known agent would wait for it
  for ((nth = 0; nth < STARTS; nth++)); do
    TIMED=edge TIMED_MS=
    spawn_qtunnel_edge
    TIMED=
    emit start-up edge_ms="${TIMED_MS:-nan}"
  done
}

scale_idle() {
  emit idle edge_mib="$(mib "$(settled_kib edge)")" agent_mib="$(mib "$(settled_kib agent)")" \
    edge_anon_mib="$(mib "$(memory_kib RssAnon edge)")" agent_anon_mib="$(mib "$(memory_kib RssAnon agent)")"
}

scale_websockets() { # scale_websockets ROW COUNT
  local edge agent
  edge=$(settled_kib edge) agent=$(settled_kib agent)
  visitors "${HOST:-lab}" idle --visitors "$2"
  until_true 60 grep -q '^all are open' "$RUN/visitors.log" || say "$PEER $1: $(tail -n 1 "$RUN/visitors.log")"
  if grep -q '^all are open' "$RUN/visitors.log"; then
    emit "$1" edge_kib_each="$(each edge "$edge" "$2")" agent_kib_each="$(each agent "$agent" "$2")"
  else
    emit "$1" errors=1
  fi
  halt visitors
}

scale_slow() { # scale_slow ROW COUNT
  local served
  visitors "${HOST:-lab}" slow --visitors "$2" --rate 10000 --seconds $((SLOW_FILL + 2 * LOAD_SECONDS + 2))
  # Not a wait for readiness: whatever is between origin and visitors is to fill.
  sleep $SLOW_FILL
  # shellcheck disable=SC2046 # one word for each metric
  emit "$1" $(in_a timeout $((LOAD_SECONDS + 20)) "$TOOLS/visitors" ask "$EDGE:9000" --host "${HOST:-lab}" --seconds "$LOAD_SECONDS") \
    edge_peak_mib="$(peak_mib edge)" agent_peak_mib="$(peak_mib agent)"
  until_true $((2 * LOAD_SECONDS + 40)) grep -q '^served=' "$RUN/visitors.log"
  served=$(sed -n 's/^served=//p' "$RUN/visitors.log")
  emit "$1" served="$(calc "${served:-0} / $2")"
  halt visitors
}

scale_own_row() { # scale_own_row KIND-NUMBER
  local number=${1#*-} options=()
  [[ $1 != workers-* ]] || options=(--workers "$number")
  spawn_qtunnel_edge "${options[@]}"
  until_true 10 edge_pin >/dev/null
  EDGE_BEFORE=$(settled_kib edge)
  case $1 in
  tunnels-*)
    local agents=$(((number + TUNNELS_PER_AGENT - 1) / TUNNELS_PER_AGENT))
    spawn_agents $agents $((number / agents)) && scale_load "$1" "$number"
    ;;
  agents-*)
    if spawn_agents "$number" 1; then
      [ "$number" -lt 100 ] || emit "$1" edge_kib_each="$(each edge "$EDGE_BEFORE" "$number")"
      scale_load "$1" "$number"
    fi
    ;;
  workers-*) spawn_agents $WORKER_AGENTS 1 && scale_load "$1" $WORKER_AGENTS ;;
  streams-*) spawn_agents $STREAM_AGENTS 1 && scale_streams "$1" "$number" ;;
  esac || emit "$1" errors=1
  halt visitors agents edge
}

scale_streams() { # scale_streams ROW COUNT
  local edge agents
  edge=$(settled_kib edge) agents=$(settled_kib agents)
  visitors 't#.qt.test' idle --hosts $STREAM_AGENTS --visitors "$2"
  until_true 60 grep -q '^all are open' "$RUN/visitors.log" || return
  [ "$2" -lt 1000 ] || emit "$1" edge_kib_each="$(each edge "$edge" "$2")" agent_kib_each="$(each agents "$agents" "$2")"
  scale_load "$1" $STREAM_AGENTS
}

# scale_load ROW HOSTS: 32 kept connections whose requests are for so many names in turn.
scale_load() {
  local row=$1 rps p50 p99 requests errors cpu_edge cpu_agents
  cpu_edge=$(cpu_seconds edge) cpu_agents=$(cpu_seconds agents)
  read -r rps p50 p99 requests errors < <(
    LAB_BENCHES=$ROOT/benches in_a timeout $((LOAD_SECONDS + 20)) wrk -t1 -c32 -d"${LOAD_SECONDS}s" --timeout 10s --latency \
      -s "$ROOT/benches/spread.lua" "http://$EDGE:9000/bytes/1024" -- 't#.qt.test' "$2" 2>&1 | sed -n 's/^RESULT //p'
  )
  [ "${requests:-0}" -gt 0 ] || return
  emit "$row" rps="$rps" p50_ms="$p50" p99_ms="$p99" errors="$errors" \
    edge_us="$(calc "($(cpu_seconds edge) - $cpu_edge) * 1e6 / $requests")" \
    agent_us="$(calc "($(cpu_seconds agents) - $cpu_agents) * 1e6 / $requests")"
}

scale_hostile() { # scale_hostile ROW NUMBER
  local state=${1#hostile-} before meanwhile edge words=()
  peer_start "$PEER" || { emit failed started=0; peer_stop; return; }
  before=$(others)
  edge=$(settled_kib edge)
  case $state in
  handshakes) words=(handshakes $EDGE:9443 --host qt.test --rate "$2") ;;
  head | body | unread) words=(hold "$state" $EDGE:9000 --host lab.qt.test --connections "$2") ;;
  *) words=(hold "$state" $EDGE:9443 --host lab.qt.test --connections "$2") ;;
  esac
  # Its own work on this machine is not what others shall wait for.
  spawn attack $SPACE_A nice -n 19 "$TOOLS/attack" "${words[@]}" --from $HOSTILE_ADDRESS
  until_true 30 grep -q '^attacking' "$RUN/attack.log" || say "$1: the attack does not begin: $(tail -n 1 "$RUN/attack.log")"
  # Not a wait for readiness: whatever an attack fills is to fill.
  sleep $SLOW_FILL
  meanwhile=$(others)
  # shellcheck disable=SC2086 # one word for each metric
  emit "$1" $meanwhile slowdown="$(calc "$(field p99_ms "$meanwhile") / $(field p99_ms "$before")")" edge_before_mib="$(mib "$edge")"
  if [ "$state" = handshakes ]; then
    scale_late_agents "$1"
    # A machine with other work may not get as far.
    emit "$1" attack_per_s="$(sed -n 's/^attacking: \([0-9]*\) handshakes in \([0-9.]*\) s.*/\1 \2/p' "$RUN/attack.log" |
      tail -n 1 | awk '{ printf "%.0f", $1 / $2 }')"
  fi
  emit "$1" edge_peak_mib="$(peak_mib edge)" agent_peak_mib="$(peak_mib agent)"
  say "$1: $(grep '^attacking' "$RUN/attack.log" | tail -n 1), $(grep -c '^sent away' "$RUN/attack.log") sent away since"
  halt attack
  sleep $HOSTILE_REST
  emit "$1" edge_after_mib="$(mib "$(memory_kib VmRSS edge)")"
  peer_stop
}
others() { # requests of others, from another address than the attack's
  in_a timeout $((HOSTILE_SECONDS + 20)) "$TOOLS/visitors" ask "$EDGE:9000" --host "$HOST" --seconds $HOSTILE_SECONDS
}

# Agents that come while others attack: until the first answer, process start included.
scale_late_agents() { # scale_late_agents ROW
  local nth HOST=late.qt.test
  for ((nth = 0; nth < STARTS; nth++)); do
    TIMED=late TIMED_MS=
    add_qtunnel_agent late late quic
    TIMED=
    emit "$1" late_agent_ms="${TIMED_MS:-20000}"
  done
}

visitors() { # visitors HOST KIND OPTIONS...
  local host=$1 kind=$2
  shift 2
  spawn visitors $SPACE_A "$TOOLS/visitors" "$kind" "$EDGE:9000" --host "$host" "$@"
}

spawn_agents() { # spawn_agents AGENTS TUNNELS-EACH
  local transport=quic
  [ "$PEER" = qtunnel ] || transport=websocket
  spawn agents $AGENT_SPACE "$AGENTS" --server $EDGE:9443 --pin "$(edge_pin)" --token lab-token \
    --transport $transport --upstream 127.0.0.1:8080 --agents "$1" --tunnels "$2"
  until_true 60 grep -q '^ready' "$RUN/agents.log" || { say "the agents do not come up: $(tail -n 1 "$RUN/agents.log")"; return 1; }
}

# memory_kib FIELD NAME: a field of /proc/PID/status, of a spawned process and all below it.
memory_kib() {
  local pid
  for pid in $(process_tree "$2"); do cat "/proc/$pid/status"; done 2>/dev/null |
    awk -v name="$1:" '$1 == name { kib += $2 } END { printf "%d", kib }'
}
# settled_kib NAME: resident memory once it has kept still within 1 % for a second, or after ten.
settled_kib() {
  local now=0 before tries=10
  while ((tries-- > 0)); do
    before=$now now=$(memory_kib VmRSS "$1")
    ((now - before <= now / 100 && before - now <= now / 100)) && break
    sleep 1
  done
  echo "$now"
}
each() { calc "($(settled_kib "$1") - $2) / $3"; } # each NAME KIB-BEFORE COUNT
mib() { calc "$1 / 1024"; }
