# What a change of network costs: every case of tests/network, many times.
# Sourced by scripts/bench. Four runs at a time: they mostly wait, each in namespaces of its own.

bench_network() {
  mkdir -p "$OUT"
  say "$NETWORK_ROUNDS runs of each case, about $((NETWORK_ROUNDS * 2)) minutes"
  QTUNNEL_NETWORK_RUNS=$NETWORK_ROUNDS QTUNNEL_NETWORK_JOBS=4 QTUNNEL_NETWORK_CASES=$ROWS QTUNNEL_NETWORK_OUT=$OUT \
    cargo test --locked --manifest-path "$ROOT/Cargo.toml" --test network -- --ignored --exact table::table --nocapture
}
