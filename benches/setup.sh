# Installs and builds what a bench needs. Sourced by scripts/bench.

# Command and the Debian package that brings it.
DEBIAN_TOOLS=(ip:iproute2 ping:iputils-ping wrk:wrk hey:hey h2load:nghttp2-client curl:curl iperf3:iperf3
  sshd:openssh-server ssh:openssh-client openssl:openssl flock:util-linux awk:gawk
  ss:iproute2 sysctl:procps nft:nftables conntrack:conntrack)
CARGO_PEERS=(bore:bore-cli rathole:rathole rusnel:rusnel)

set_up() {
  build_lab
  [ $INSTALL = no ] || install_tools
  if [ "${WHATS[*]}" != verify ]; then
    [ $INSTALL = no ] || install_peers
    build_qtunnel
  fi
}

build_lab() {
  CARGO_TARGET_DIR=$ROOT/target/lab cargo build -q --release --locked --manifest-path "$ROOT/benches/lab/Cargo.toml" ||
    die "cannot build benches/lab"
}

# The binary is part of the bench unless the user brings one or measures only others.
build_qtunnel() {
  [ ${#NAMED_PEERS[@]} -eq 0 ] || [[ " ${NAMED_PEERS[*]}" = *" qtunnel"* ]] || return 0
  ! built_here || build_ours || die "cannot build qtunnel"
  [[ " ${WHATS[*]} " != *" scale "* ]] || ! wants_many_agents || build_ours --example lab-agents ||
    die "cannot build the crowd of agents"
}
wants_many_agents() {
  local row
  for row in "${SCALE_OWN_ROWS[@]}"; do wanted "$row" && return; done
  return 1
}
build_ours() { cargo build -q --profile dist --locked --manifest-path "$ROOT/Cargo.toml" "$@"; }

install_tools() {
  local tool packages=()
  for tool in "${DEBIAN_TOOLS[@]}"; do
    PATH=$PATH:/usr/sbin command -v "${tool%%:*}" >/dev/null || packages+=("${tool#*:}")
  done
  [ ${#packages[@]} -eq 0 ] && return
  say "installing ${packages[*]}"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"; } \
    >"/tmp/qtunnel-bench-apt.log" 2>&1 ||
    die "cannot install ${packages[*]}; /tmp/qtunnel-bench-apt.log says why"
}

install_peers() {
  local peer
  for peer in "${CARGO_PEERS[@]}"; do
    [ -x "$PEERS/bin/${peer%%:*}" ] && continue
    say "installing ${peer#*:} (some minutes, once)"
    # What rathole has locked no longer compiles with a recent Rust.
    cargo install -q --locked --root "$PEERS" "${peer#*:}" 2>/dev/null ||
      cargo install -q --root "$PEERS" "${peer#*:}" || say "cannot install ${peer#*:}; leaving it out"
  done
}

built_here() { [ "$QTUNNEL" = "$ROOT/target/dist/qtunnel" ]; }
