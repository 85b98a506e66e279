# The ground that every bench stands on: directories, processes, namespaces, the link, and the results.
# Sourced by scripts/bench; does nothing by itself.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TOOLS=$ROOT/target/lab/release                             # attack, link, origin, report, visitors
AGENTS=$ROOT/target/dist/examples/lab-agents            # many of qtunnel's in one process
RUN=$ROOT/target/lab/run                                   # configurations, logs and pids; goes at the end
PEERS=${XDG_CACHE_HOME:-$HOME/.cache}/qtunnel-lab/peers    # what cargo installs; stays
QTUNNEL=${QTUNNEL:-$ROOT/target/dist/qtunnel}

# The visitor and the public end live in A, the agent's end and the origin in B. On the clean ground
# both are the loopback of A.
SPACE_A=qtlab-a SPACE_B=qtlab-b
LINK_A=10.77.0.1 LINK_B=10.77.0.2

say() { echo "bench: $*" >&2; }
die() { say "$*"; exit 1; }

in_a() { ip netns exec "$SPACE_A" "$@"; }

# spawn NAME NAMESPACE COMMAND...: run in the background, log to $RUN/NAME.log, remember the pid.
# The one that TIMED names runs only until the first request is answered; TIMED_MS is how long that took.
spawn() {
  local name=$1 space=$2
  shift 2
  if [ "$name" = "${TIMED:-}" ]; then
    TIMED_MS=$(ip netns exec "$space" "$TOOLS/visitors" start "$EDGE:9000" --host "${HOST:-lab}" \
      $([ "$name" != edge ] || echo --any) -- "$@" 2>>"$RUN/visitors.log" 9>&-)
    return
  fi
  # ip becomes the command, so that the pid is the command's own.
  run_behind "$name" ip netns exec "$space" "$@"
}
run_behind() { # run_behind NAME COMMAND...: spawn, but outside of any namespace
  local name=$1
  shift
  # Emptied here and not by the child: whoever waits for a line must not find that of the process before.
  : >"$RUN/$name.log"
  # The lock of take_turn is not for children: it must go with the bench, even if they stay.
  "$@" >>"$RUN/$name.log" 2>&1 9>&- &
  echo $! >"$RUN/$name.pid"
}

# halt NAME...: end exactly those, by force after two seconds.
halt() {
  local name pid
  for name; do
    [ -f "$RUN/$name.pid" ] || continue
    pid=$(<"$RUN/$name.pid")
    rm -f "$RUN/$name.pid"
    kill "$pid" 2>/dev/null
    until_true 2 gone "$pid" || kill -9 "$pid" 2>/dev/null
    wait "$pid" 2>/dev/null
  done
  return 0
}
gone() { ! kill -0 "$1" 2>/dev/null; }

# until_true SECONDS COMMAND...: try twenty times a second; fails if it never succeeds.
until_true() {
  local tries=$(($1 * 20))
  shift
  while ! "$@" 2>/dev/null; do
    ((tries-- > 0)) || return 1
    sleep .05
  done
}
listens_tcp() { [ -n "$(ip netns exec "$1" ss -Hltn "sport = :$2")" ]; }
listens_udp() { [ -n "$(ip netns exec "$1" ss -Hlun "sport = :$2")" ]; }

# Everything that a run leaves behind, whatever ended it.
clear_ground() {
  local pid_file
  for pid_file in "$RUN"/*.pid; do
    [ -f "$pid_file" ] && halt "$(basename "$pid_file" .pid)"
  done
  remove_spaces
  [ ! -f "$RUN/allowed" ] || sysctl -qw "net.ipv4.tcp_allowed_congestion_control=$(<"$RUN/allowed")"
  rm -rf "$RUN"
}

# Both namespaces with all that runs in them, also from a bench that was killed.
remove_spaces() {
  local space pid
  for space in $SPACE_A $SPACE_B; do
    for pid in $(ip netns pids "$space" 2>/dev/null); do kill -9 "$pid"; done
    ip netns del "$space" 2>/dev/null
  done
}

# make_spaces CONGESTION: both namespaces, with this congestion control for TCP.
make_spaces() {
  local space
  allow_congestion "$1"
  for space in $SPACE_A $SPACE_B; do
    ip netns list | grep -qw "$space" || ip netns add "$space" || die "cannot make the namespace $space"
    ip -n "$space" link set lo up
    # Rows with a connection per request need many ports, soon free again; a route must not remember
    # what an earlier peer found out about it.
    ip netns exec "$space" sysctl -qw "net.ipv4.tcp_congestion_control=$1" net.ipv4.tcp_no_metrics_save=1 \
      net.ipv4.ip_local_port_range="20000 65000" net.ipv4.tcp_tw_reuse=1 net.ipv4.tcp_max_tw_buckets=4000 ||
      die "cannot set up the namespace $space"
  done
}

# A namespace may only use what the whole machine allows to everyone; clear_ground puts that back.
allow_congestion() {
  local allowed
  allowed=$(sysctl -n net.ipv4.tcp_allowed_congestion_control)
  [[ " $allowed " = *" $1 "* ]] && return
  [ -f "$RUN/allowed" ] || echo "$allowed" >"$RUN/allowed"
  sysctl -qw "net.ipv4.tcp_allowed_congestion_control=$allowed $1" || die "the kernel has no TCP congestion control named $1"
}

clean_ground() { # clean_ground CONGESTION
  make_spaces "$1"
  AGENT_SPACE=$SPACE_A EDGE=127.0.0.1 ORIGIN=127.0.0.1
}

link_ground() { # link_ground CONGESTION LINK-OPTIONS...
  local congestion=$1
  shift
  make_spaces "$congestion"
  AGENT_SPACE=$SPACE_B EDGE=$LINK_A ORIGIN=$LINK_B
  # The link itself stays outside of the namespaces that it joins.
  run_behind link "$TOOLS/link" --a "$SPACE_A=$LINK_A/24" --b "$SPACE_B=$LINK_B/24" "$@"
  until_true 5 grep -q '^link is up' "$RUN/link.log" || die "the link does not come up: $(tail -n 3 "$RUN/link.log")"
}

# link_stats: print the link's counters since they were last read, as name=value words.
link_stats() {
  local before
  before=$(grep -c '^stats' "$RUN/link.log")
  kill -USR2 "$(<"$RUN/link.pid")"
  until_true 2 has_more_stats "$before" || die "the link does not answer"
  tail -n 1 "$RUN/link.log"
}
has_more_stats() { [ "$(grep -c '^stats' "$RUN/link.log")" -gt "$1" ]; }
field() { tr ' ' '\n' <<<"$2" | sed -n "s/^$1=//p"; } # field NAME WORDS

calc() { awk "BEGIN { printf \"%.3f\", $1 }"; }

origin_up() { # origin_up [NAME PORT OPTIONS...]
  local name=${1:-origin} port=${2:-8080}
  shift $(($# > 2 ? 2 : $#))
  spawn "$name" "$AGENT_SPACE" "$TOOLS/origin" "0.0.0.0:$port" "$@"
  until_true 5 listens_tcp "$AGENT_SPACE" "$port" || die "the origin does not start: $(<"$RUN/$name.log")"
}

# process_tree NAME: the pids of a spawned process and all below it.
process_tree() {
  local queue pid
  [ -f "$RUN/$1.pid" ] || return 0
  queue=$(<"$RUN/$1.pid")
  while [ -n "$queue" ]; do
    echo "$queue"
    queue=$(for pid in $queue; do cat /proc/"$pid"/task/*/children 2>/dev/null; done)
  done
}
peak_mib() { # peak_mib NAME: the sum of the peaks of resident memory
  local pid
  for pid in $(process_tree "$1"); do cat "/proc/$pid/status"; done 2>/dev/null |
    awk '/^VmHWM/ { kib += $2 } END { printf "%.1f", kib / 1024 }'
}
cpu_seconds() { # cpu_seconds NAME: processor time so far, of living processes
  local pid
  for pid in $(process_tree "$1"); do cat "/proc/$pid/stat"; done 2>/dev/null |
    awk -v tick="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); ticks += $12 + $13 } END { printf "%.2f", ticks / tick }'
}

# begin_results NAME: $OUT/NAME.csv, headed by what the machine is, takes what emit says from now on.
begin_results() {
  RESULTS=$OUT/$1.csv
  mkdir -p "$OUT"
  { facts; echo "scene,congestion,peer,row,round,metric,value"; } >"$RESULTS"
}
# emit ROW METRIC=VALUE...: one line for each, of the scene, peer and round at hand.
emit() {
  local row=$1 pair
  shift
  for pair; do
    echo "$SCENE,$CONGESTION,$PEER,$row,$ROUND,${pair%%=*},${pair#*=}"
  done >>"$RESULTS"
  say "$SCENE $CONGESTION $PEER $row: $*"
}

facts() {
  echo "# date: $(date -u +'%F %H:%M UTC')"
  echo "# kernel: $(uname -sr)"
  echo "# processor: $(sed -n 's/^model name\s*: //p' /proc/cpuinfo | head -n 1), $(nproc) cores"
  echo "# memory: $(awk '/^MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo)"
  echo "# load average at the start: $(cut -d' ' -f1-3 /proc/loadavg)"
  echo "# tcp: congestion control $(sysctl -n net.ipv4.tcp_available_congestion_control) available, rmem $(sysctl -n net.ipv4.tcp_rmem | tr '\t' ' ')"
  echo "# udp: rmem_max $(sysctl -n net.core.rmem_max), wmem_max $(sysctl -n net.core.wmem_max)"
  echo "# series: $ROUNDS rounds, $LOAD_SECONDS s of load per row, a body is given up after $BULK_SECONDS s"
  echo "# load from: $(wrk -v 2>&1 | head -n 1 | cut -d' ' -f1,2), $(h2load --version), $(curl --version | head -n 1 | cut -d' ' -f1,2), hey $(dpkg-query -W -f '${Version}' hey 2>/dev/null)"
  echo "# descriptors of a process: $(ulimit -n)"
  local peer
  for peer in "${PEER_LIST[@]}"; do
    echo "# $peer: $(peer_version "$peer")"
  done
}
