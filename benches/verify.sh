# Is the link telling the truth? Ping, iperf3 and the kernel's own counters are asked; only how many packets
# are lost in a row is known to nobody but the link.
# Sourced by scripts/bench.

bench_verify() {
  local wrong=0
  ask "no trouble at all"
  expect "round trip, ms" "$(ping_ms)" 0 0.5
  expect "TCP download, Mbit/s" "$(tcp_mbit)" 300 1e6
  over

  ask "40 ms, 50 Mbit/s, 100 ms queue" --delay-ms 20 --rate-mbit 50 --queue-ms 100
  expect "round trip, ms" "$(ping_ms)" 40 41
  expect "UDP goodput at 60 Mbit/s offered" "$(udp_flood mbit)" 47.5 50
  expect "round trip behind that flood, ms" "$(ping_beside_flood)" 135 143
  expect "TCP download, Mbit/s" "$(tcp_mbit)" 44 50
  over

  ask "another rate each way" --delay-ms 20 --rate-mbit 2 --back-rate-mbit 20
  expect "TCP download, Mbit/s" "$(tcp_mbit)" 17.5 20
  expect "UDP goodput up at 60 Mbit/s offered" "$(udp_flood mbit)" 1.85 2
  over

  ask "10 and 30 Mbit/s, half a second each" --rate-mbit 10,30 --rate-step-ms 500
  expect "UDP goodput at 60 Mbit/s offered" "$(udp_flood mbit)" 19 20
  over

  ask "3 % loss, each packet by itself" --delay-ms 20 --loss 0.03
  expect "UDP loss, %" "$(udp_probe lost)" 2.3 3.7
  expect "packets lost in a row" "$(burst_length)" 1 1.2
  over

  ask "3 % loss in bursts of 5" --delay-ms 20 --loss 0.03,5
  expect "UDP loss, %" "$(udp_probe lost)" 1.8 4.2
  expect "packets lost in a row" "$(burst_length)" 4.2 5.8
  over

  ask "10 ms jitter" --delay-ms 20 --jitter-ms 10
  expect "round trip, ms" "$(ping_ms)" 45 55
  expect "UDP packets out of order" "$(udp_probe misordered)" 0 0
  over

  ask "2 % held back, 1 % doubled" --delay-ms 20 --reorder 0.02 --duplicate 0.01
  expect "UDP packets out of order, %" "$(udp_probe misordered)" 1.2 3.5
  expect "pings answered twice, %" "$(ping_doubled)" 1 3
  over

  ask "2 % with one bit flipped" --delay-ms 20 --corrupt 0.02
  expect "UDP packets with a wrong checksum, %" "$(udp_spoilt)" 1.2 2.8
  over

  [ $wrong = 0 ] || die "$wrong of these are not what was asked for"
  say "the link is what it says"
}

ask() { # ask WHAT LINK-OPTIONS...
  echo "$1"
  shift
  link_ground cubic "$@"
  spawn iperf $SPACE_B iperf3 -s
  until_true 5 listens_tcp $SPACE_B 5201
}
over() { halt iperf link; }

expect() { # expect WHAT FOUND LEAST MOST
  local verdict=ok
  awk "BEGIN { exit !(\"$2\" != \"\" && $2 + 0 >= $3 && $2 + 0 <= $4) }" || { verdict=WRONG; wrong=$((wrong + 1)); }
  printf '  %-42s %10s   expected %s to %s   %s\n' "$1" "$2" "$3" "$4" $verdict
}

ping_ms() { in_a ping -q -w 10 -i .01 -c 300 $LINK_B | sed -nE 's|^rtt.* = [0-9.]+/([0-9.]+)/.*|\1|p'; }

# Pings of 1 % of the round trips that come back double, there or back.
ping_doubled() {
  in_a ping -q -w 20 -i .005 -c 2000 $LINK_B | sed -nE 's/^([0-9]+) packets.* \+([0-9]+) duplicates.*/\1 \2/p' |
    awk '{ printf "%.2f", 100 * $2 / $1 }'
}

tcp_mbit() { in_a iperf3 -R -f m -t 5 -c $LINK_B | sed -nE 's/.* ([0-9.]+) Mbits\/sec.*receiver/\1/p'; }

# udp RATE SECONDS FIELD: what arrived of a UDP stream from A to B: mbit, or the share in percent that was
# lost or came out of order.
udp() {
  in_a iperf3 -u -b "$1" -l 1400 -t "$2" -f m --get-server-output -c $LINK_B >"$RUN/udp.log" 2>&1
  # The far end says how many came out of order in a line of its own, if any did.
  awk -v field="$3" '
    /datagrams received out-of-order/ { for (i = 1; i <= NF; i++) if ($i == "datagrams") misordered = $(i - 1) }
    /Mbits.*receiver/ {
      for (i = 1; i <= NF; i++) {
        if ($i == "Mbits/sec") mbit = $(i - 1)
        if ($i ~ /^[0-9]+\/[0-9]+$/) split($i, count, "/")
      }
    }
    END {
      if (field == "mbit") print mbit
      if (field == "lost") printf "%.2f\n", 100 * count[1] / count[2]
      if (field == "misordered") printf "%.2f\n", 100 * misordered / count[2]
    }' "$RUN/udp.log"
}
udp_flood() { udp 60M 5 "$1"; }
udp_probe() { udp 12M 8 "$1"; }

ping_beside_flood() {
  in_a iperf3 -u -b 60M -l 1400 -t 4 -c $LINK_B >/dev/null 2>&1 &
  local flood=$!
  sleep 1 # the queue fills
  in_a ping -q -w 5 -i .01 -c 200 $LINK_B | sed -nE 's|^rtt.* = [0-9.]+/([0-9.]+)/.*|\1|p'
  wait $flood
}

burst_length() {
  local stats
  stats=$(link_stats)
  calc "$(field a2b.lost "$stats") / $(field a2b.bursts "$stats")"
}

udp_spoilt() {
  local before after sent
  link_stats >/dev/null
  before=$(udp_checksum_errors)
  udp_probe lost >/dev/null
  after=$(udp_checksum_errors)
  sent=$(field a2b.packets "$(link_stats)")
  calc "100 * ($after - $before) / $sent"
}
udp_checksum_errors() { ip netns exec $SPACE_B nstat -asz UdpInCsumErrors | awk '/UdpInCsumErrors/ { print $2 }'; }
