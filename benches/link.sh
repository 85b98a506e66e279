# The emulated link between the public end (A, with the visitors) and the agent's end (B, with the origin).
# Sourced by scripts/bench. Down is from B to A, up from A to B.
#
# Rows, with answers of 10 KiB unless said otherwise:
#   download         20 MiB (100 MiB on long paths), given up after $BULK_SECONDS s
#   new1             one visitor, one request after another, each on a new connection
#   new20, keep20    20 visitors one request after another, each on a new connection or on a kept one
#   beside-download  10 visitors × 5 requests/s of 1 KiB while somebody downloads without end
#   beside-upload    the same while somebody uploads
#   beside-many      the same while somebody downloads twenty things at a time
#   varying          a download while the rate changes
#   citizens         a download beside a direct TCP download on Cubic and one on BBR
#   twins            two downloads through two agents

LINK_SCENES=(wan burst long satellite dsl dsl-agent lte heavy fair)
LINK_PEERS=(direct bore rathole ssh frp rusnel rusnel-bbr qtunnel qtunnel-websocket)

# A rate that walks between 2 and 50 Mbit/s, as a phone sees it that moves; one step a second.
LTE_WALK=2,5,9,14,22,31,40,50,44,35,28,37,46,33,21,12,7,4,10,18
LTE_SECONDS=20 # one turn of the walk

# link_conditions SCENE: lines of "condition rate-down options of the link".
link_conditions() {
  local loss wan="--delay-ms 20 --rate-mbit 50 --queue-ms 100"
  case $1 in
  wan) for loss in $LOSSES; do echo "wan-$loss 50 $wan --loss $(calc "$loss / 100")"; done ;;
  burst) for loss in $LOSSES; do [ "$loss" = 0 ] || echo "burst-$loss 50 $wan --loss $(calc "$loss / 100"),5"; done ;;
  long) echo "long 100 --delay-ms 100 --rate-mbit 100 --queue-ms 100" ;;
  satellite) echo "satellite 20 --delay-ms 300 --rate-mbit 20 --queue-ms 300" ;;
  dsl) echo "dsl 10 --delay-ms 20 --rate-mbit 1 --back-rate-mbit 10 --queue-ms 1000" ;;
  dsl-agent) echo "dsl-agent 1 --delay-ms 20 --rate-mbit 10 --back-rate-mbit 1 --queue-ms 1000" ;;
  lte) echo "lte 25 --delay-ms 20 --rate-mbit $LTE_WALK --queue-ms 100" ;;
  heavy) echo "heavy 50 $wan --loss 0.25" ;;
  fair) echo "fair 50 $wan" ;;
  esac
}

link_rows() { # link_rows SCENE
  case $1 in
  wan | burst) echo download new20 beside-download new1 $([ "$LENGTH" = quick ] || echo keep20 beside-upload beside-many) ;;
  long | satellite) echo download new20 ;;
  dsl) echo beside-upload ;;
  dsl-agent) echo beside-download beside-many ;;
  lte) echo varying ;;
  heavy) echo download ;;
  fair) echo citizens twins ;;
  esac
}

bench_link() { # bench_link SCENE
  local family=$1 congestion nth down options
  begin_results "$family"
  for ((ROUND = 1; ROUND <= ROUNDS; ROUND++)); do
    while read -r SCENE down options <&3; do
      for congestion in $CONGESTIONS; do
        for ((nth = 0; nth < ${#PEER_LIST[@]}; nth++)); do
          PEER=${PEER_LIST[(nth + ROUND - 1) % ${#PEER_LIST[@]}]} CONGESTION=$congestion
          if has_own_congestion "$PEER"; then
            [ "$congestion" = "${CONGESTIONS%% *}" ] || continue
            CONGESTION=own
          fi
          # shellcheck disable=SC2086 # the link's options are words
          link_ground "$congestion" --seed "$ROUND" $options
          origin_up
          if peer_start "$PEER"; then
            run_link_rows "$family" "$down"
          else
            emit failed started=0
          fi
          peer_stop
          halt origin link
        done
      done
    done 3< <(link_conditions "$family")
  done
}

run_link_rows() { # run_link_rows SCENE MBIT-DOWN
  local row size=$((20 << 20))
  [[ $1 = long || $1 = satellite ]] && size=$((100 << 20))
  for row in $(link_rows "$1"); do
    wanted "$row" || continue
    case $row in
    download) link_download "$size" "$2" ;;
    new1) link_requests new1 /bytes/10240 -c 1 -disable-keepalive ;;
    new20) link_requests new20 /bytes/10240 -c 20 -disable-keepalive ;;
    keep20) link_requests keep20 /bytes/10240 -c 20 ;;
    beside-*) link_beside "${row#beside-}" ;;
    varying) link_varying ;;
    citizens) link_citizens ;;
    twins) link_twins ;;
    esac
  done
}

link_download() { # link_download BYTES MBIT-DOWN
  local seconds bytes stats mbit
  link_stats >/dev/null
  read -r seconds bytes < <(visit "/bytes/$1" -m "$BULK_SECONDS" -o /dev/null -w '%{time_total} %{size_download}\n')
  stats=$(link_stats)
  mbit=$(calc "$bytes * 8 / $seconds / 1e6")
  emit download mbit="$mbit" share="$(calc "$mbit / $2")" sent_mbit="$(calc "$(field b2a.bytes "$stats") * 8 / $seconds / 1e6")"
}

link_requests() { # link_requests ROW PATH HEY-OPTIONS...
  local row=$1 path=$2
  shift 2
  in_a timeout $((LOAD_SECONDS + 40)) hey -z "${LOAD_SECONDS}s" -t 30 -o csv ${HOST:+-host "$HOST"} "$@" "$URL$path" \
    >"$RUN/hey.csv" 2>/dev/null
  # shellcheck disable=SC2046 # one word for each metric
  emit "$row" $("$TOOLS/report" quantiles "$RUN/hey.csv")
}

link_beside() { # link_beside download|upload|many
  local bulk=("$URL/bytes/10000000000")
  if [ "$1" = many ]; then
    bulk=(--parallel --parallel-max 20 "$URL/bytes/10000000000?[1-20]")
  elif [ "$1" = upload ]; then
    bulk_file $((100 << 20))
    bulk=(-H Expect: -T "$RUN/bulk-$((100 << 20))" "$URL/sink")
  fi
  spawn bulk $SPACE_A curl -s -m $((LOAD_SECONDS + 60)) ${HOST:+-H "Host: $HOST"} -o /dev/null "${bulk[@]}"
  # Not a wait for readiness: what is to be measured is the queue that a bulk transfer under way has built.
  sleep 2
  link_requests "beside-$1" /bytes/1024 -c 10 -q 5
  halt bulk
}

link_varying() {
  local bytes stats seconds=$((LTE_SECONDS * $([ "$LENGTH" = quick ] && echo 1 || echo 2)))
  link_stats >/dev/null
  bytes=$(visit /bytes/10000000000 -m $seconds -o /dev/null -w '%{size_download}')
  stats=$(link_stats)
  emit varying mbit="$(calc "$bytes * 8 / $seconds / 1e6")" share="$(calc "$bytes / $(field b2a.capacity "$stats")")" \
    wait_p95_ms="$(calc "$(field b2a.wait_p95_us "$stats") / 1000")"
}

# timed_download FILE URL CURL-OPTIONS...: how many bytes come in $FAIR_SECONDS, in the background.
timed_download() {
  local file=$1 url=$2
  shift 2
  in_a curl -s -m "$FAIR_SECONDS" -o /dev/null -w '%{size_download}\n' "$@" "$url/bytes/10000000000" >"$RUN/$file" &
}

link_citizens() {
  local jobs=() ours cubic bbr fair
  origin_up origin-cubic 8081 --congestion cubic
  origin_up origin-bbr 8082 --congestion bbr
  timed_download ours "$URL" ${HOST:+-H "Host: $HOST"} && jobs+=($!)
  timed_download cubic "http://$ORIGIN:8081" && jobs+=($!)
  timed_download bbr "http://$ORIGIN:8082" && jobs+=($!)
  wait "${jobs[@]}"
  halt origin-cubic origin-bbr
  ours=$(<"$RUN/ours") cubic=$(<"$RUN/cubic") bbr=$(<"$RUN/bbr")
  # Each one's part of the third of the link that would be fair.
  fair="(50e6 / 8 * $FAIR_SECONDS / 3)"
  emit citizens of_fair="$(calc "$ours / $fair")" cubic_of_fair="$(calc "$cubic / $fair")" bbr_of_fair="$(calc "$bbr / $fair")"
}

link_twins() {
  local one two jobs=()
  [[ $PEER = qtunnel* ]] || return
  add_qtunnel_agent agent2 twin "$([ "$PEER" = qtunnel ] && echo quic || echo websocket)"
  HOST=twin.qt.test until_true 15 answers || { emit failed twin=0; return; }
  timed_download one "$URL" -H "Host: lab.qt.test" && jobs+=($!)
  timed_download two "$URL" -H "Host: twin.qt.test" && jobs+=($!)
  wait "${jobs[@]}"
  one=$(<"$RUN/one") two=$(<"$RUN/two")
  emit twins jain="$(calc "($one + $two) ^ 2 / (2 * ($one ^ 2 + $two ^ 2))")" mbit="$(calc "($one + $two) * 8 / $FAIR_SECONDS / 1e6")"
}
