# The clean ground: everything on one loopback. Sourced by scripts/bench.
#
# Rows: keep-N and new-N (1 KiB answers over N connections, kept or new for each request), tls-h1 and
# tls-h2 (HTTP/1.1 on 32 connections, HTTP/2 on 32 × 10 streams; only for who serves HTTPS), download and
# upload (one large body), memory (the peaks after all of these).

CLEAN_ROWS=(keep-1 keep-32 keep-256 new-1 new-32 new-256 tls-h1 tls-h2 download upload memory)

bench_clean() {
  local nth
  begin_results clean
  SCENE=clean CONGESTION=cubic
  for ((ROUND = 1; ROUND <= ROUNDS; ROUND++)); do
    for ((nth = 0; nth < ${#PEER_LIST[@]}; nth++)); do
      # Each round begins with another peer, so that none always runs on the warmest or busiest machine.
      PEER=${PEER_LIST[(nth + ROUND - 1) % ${#PEER_LIST[@]}]}
      clean_ground $CONGESTION
      origin_up
      if peer_start "$PEER"; then
        clean_rows
      else
        emit failed started=0
      fi
      peer_stop
      halt origin
    done
  done
}

clean_rows() {
  local row cpu_edge cpu_agent
  for row in "${CLEAN_ROWS[@]}"; do
    wanted "$row" || continue
    [[ $row != tls-* || $PEER = qtunnel* ]] || continue
    [[ $row != memory || $PEER != direct ]] || continue
    cpu_edge=$(cpu_seconds edge) cpu_agent=$(cpu_seconds agent)
    case $row in
    keep-*) clean_requests "$row" "${row#keep-}" ;;
    new-*) clean_requests "$row" "${row#new-}" -H "Connection: close" ;;
    tls-h1) clean_tls "$row" --h1 -m 1 ;;
    tls-h2) clean_tls "$row" -m 10 ;;
    download) clean_download ;;
    upload) clean_upload ;;
    memory) emit memory edge_peak_mib="$(peak_mib edge)" agent_peak_mib="$(peak_mib agent)" ;;
    esac
    if [ "$PEER" != direct ] && [ "$row" != memory ]; then
      emit "$row" edge_cpu_s="$(calc "$(cpu_seconds edge) - $cpu_edge")" \
        agent_cpu_s="$(calc "$(cpu_seconds agent) - $cpu_agent")"
    fi
  done
}

clean_requests() { # clean_requests ROW CONNECTIONS WRK-OPTIONS...
  local row=$1 connections=$2 rps p50 p99 requests errors
  shift 2
  read -r rps p50 p99 requests errors < <(
    in_a timeout $((LOAD_SECONDS + 20)) wrk -t1 -c"$connections" -d${LOAD_SECONDS}s --timeout 10s --latency \
      -s "$ROOT/benches/wrk.lua" ${HOST:+-H "Host: $HOST"} "$@" "$URL/bytes/1024" 2>&1 | sed -n 's/^RESULT //p'
  )
  emit "$row" rps="${rps:-0}" p50_ms="${p50:-nan}" p99_ms="${p99:-nan}" requests="${requests:-0}" errors="${errors:-1}"
}

clean_tls() { # clean_tls ROW H2LOAD-OPTIONS...
  local row=$1 rps
  shift
  rm -f "$RUN/h2load.log"
  rps=$(in_a timeout $((LOAD_SECONDS + 20)) h2load -c 32 -t 1 -D "$LOAD_SECONDS" "$@" --log-file="$RUN/h2load.log" \
    --connect-to="$EDGE:9443" "https://$HOST:9443/bytes/1024" 2>&1 | sed -nE 's/^finished in .*, ([0-9.]+) req\/s.*/\1/p')
  emit "$row" rps="${rps:-0}" $("$TOOLS/report" quantiles "$RUN/h2load.log")
}

clean_download() {
  local seconds bytes
  read -r seconds bytes < <(visit "/bytes/$BULK_BYTES" -m 120 -o /dev/null -w '%{time_total} %{size_download}\n')
  emit download mb_per_s="$(calc "$bytes / $seconds / 1e6")" errors=$((bytes != BULK_BYTES))
}

clean_upload() {
  local seconds received
  bulk_file "$BULK_BYTES"
  seconds=$(visit /sink -m 120 -H Expect: -T "$RUN/bulk-$BULK_BYTES" -o "$RUN/received" -w '%{time_total}')
  received=$(<"$RUN/received")
  emit upload mb_per_s="$(calc "$BULK_BYTES / $seconds / 1e6")" errors=$((received != BULK_BYTES))
}

bulk_file() { # bulk_file BYTES: noise to upload
  [ -f "$RUN/bulk-$1" ] || head -c "$1" /dev/urandom >"$RUN/bulk-$1"
}
