# How each peer is started, measured side by side with qtunnel. Sourced by scripts/bench.
#
# To add one: a case in peer_start that spawns "edge" (the public end, in namespace A) and "agent" (beside
# the origin), one in peer_version, and its name in ALL_PEERS. The origin is 127.0.0.1:8080 for the agent.

ALL_PEERS=(direct bore rathole rathole-noise rathole-tls rusnel rusnel-bbr ssh frp qtunnel qtunnel-websocket)
# They speak QUIC, or (a WebSocket of ours) choose the kernel's congestion control themselves.
OWN_CONGESTION=" rusnel rusnel-bbr qtunnel qtunnel-websocket "

has_own_congestion() { [[ $OWN_CONGESTION = *" $1 "* ]]; }

# peer_present NAME: succeeds if its programs are here.
peer_present() {
  case $1 in
  direct) true ;;
  bore) [ -x "$PEERS/bin/bore" ] ;;
  rathole*) [ -x "$PEERS/bin/rathole" ] ;;
  rusnel*) [ -x "$PEERS/bin/rusnel" ] ;;
  ssh) [ -x /usr/sbin/sshd ] && command -v ssh >/dev/null ;;
  frp) command -v frps >/dev/null && command -v frpc >/dev/null ;;
  qtunnel) [ -x "$QTUNNEL" ] ;;
  qtunnel-websocket) [ -x "$QTUNNEL" ] && has_transports ;;
  *) die "no peer named $1; there are: ${ALL_PEERS[*]}" ;;
  esac
}

peer_version() {
  case $1 in
  direct) echo "the origin itself, without a tunnel" ;;
  bore) "$PEERS/bin/bore" --version ;;
  rathole*) echo "rathole $("$PEERS/bin/rathole" --version | sed -n 's/^Build Version: *//p')" ;;
  rusnel*) "$PEERS/bin/rusnel" --version ;;
  ssh) ssh -V 2>&1 ;;
  frp) echo "frp $(frps --version)" ;;
  qtunnel*) echo "$("$QTUNNEL" --version)$(built_here && echo ", commit $(git -C "$ROOT" describe --always --dirty)")" ;;
  esac
}

# peer_start NAME: start both ends and wait for the first answer.
peer_start() {
  peer_spawn "$1"
  if ! until_true 15 answers; then
    say "$1 does not answer; its logs end with:"
    tail -n 3 "$RUN/edge.log" "$RUN/agent.log" >&2
    return 1
  fi
}
# peer_spawn NAME: only start both ends.
# Sets URL (what a visitor in namespace A asks) and HOST (its Host header, or nothing).
peer_spawn() {
  URL=http://127.0.0.1:9000 HOST=
  case $1 in
  direct) URL=http://$ORIGIN:8080 ;;
  bore) start_bore ;;
  rathole*) start_rathole "${1#rathole}" ;;
  rusnel) start_rusnel cubic ;;
  rusnel-bbr) start_rusnel bbr ;;
  ssh) start_ssh ;;
  frp) start_frp ;;
  qtunnel) start_qtunnel quic ;;
  qtunnel-websocket) start_qtunnel websocket ;;
  esac
}
peer_stop() { halt agent2 agent edge; }
answers() { [ "$(visit /bytes/2 -m 2 | wc -c)" = 2 ]; }

# visit PATH CURL-OPTIONS...: one request of a visitor.
visit() {
  local path=$1
  shift
  in_a curl -s ${HOST:+-H "Host: $HOST"} "$@" "$URL$path"
}

start_bore() {
  spawn edge $SPACE_A "$PEERS/bin/bore" server
  until_true 5 listens_tcp $SPACE_A 7835
  spawn agent $AGENT_SPACE "$PEERS/bin/bore" local 8080 --local-host 127.0.0.1 --to $EDGE --port 9000
}

start_rathole() { # start_rathole ''|-noise|-tls
  local edge= agent= keys
  case $1 in
  -noise)
    keys=$("$PEERS/bin/rathole" --genkey)
    edge="[server.transport]
type = \"noise\"
[server.transport.noise]
local_private_key = \"$(sed -n 2p <<<"$keys")\""
    agent="[client.transport]
type = \"noise\"
[client.transport.noise]
remote_public_key = \"$(tail -n 1 <<<"$keys")\""
    ;;
  -tls)
    make_certificate
    edge="[server.transport]
type = \"tls\"
[server.transport.tls]
pkcs12 = \"$RUN/lab.pfx\"
pkcs12_password = \"lab\""
    agent="[client.transport]
type = \"tls\"
[client.transport.tls]
trusted_root = \"$RUN/lab.pem\"
hostname = \"lab\""
    ;;
  esac
  cat >"$RUN/rathole-edge.toml" <<TOML
[server]
bind_addr = "0.0.0.0:2333"
default_token = "lab"
[server.services.web]
bind_addr = "127.0.0.1:9000"
$edge
TOML
  cat >"$RUN/rathole-agent.toml" <<TOML
[client]
remote_addr = "$EDGE:2333"
default_token = "lab"
[client.services.web]
local_addr = "127.0.0.1:8080"
$agent
TOML
  spawn edge $SPACE_A "$PEERS/bin/rathole" -s "$RUN/rathole-edge.toml"
  until_true 5 listens_tcp $SPACE_A 2333
  spawn agent $AGENT_SPACE "$PEERS/bin/rathole" -c "$RUN/rathole-agent.toml"
}

make_certificate() {
  [ -f "$RUN/lab.pfx" ] && return
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 9 -subj /CN=lab \
    -addext subjectAltName=DNS:lab -addext basicConstraints=critical,CA:FALSE \
    -keyout "$RUN/lab.key" -out "$RUN/lab.pem" 2>/dev/null
  openssl pkcs12 -export -passout pass:lab -inkey "$RUN/lab.key" -in "$RUN/lab.pem" -out "$RUN/lab.pfx"
}

start_rusnel() { # start_rusnel CONGESTION
  spawn edge $SPACE_A "$PEERS/bin/rusnel" server -p 4434 --insecure --allow-reverse --congestion "$1"
  until_true 5 listens_udp $SPACE_A 4434
  spawn agent $AGENT_SPACE "$PEERS/bin/rusnel" client --insecure --congestion "$1" \
    $EDGE:4434 R:127.0.0.1:9000:127.0.0.1:8080
}

start_ssh() {
  if [ ! -f "$RUN/ssh" ]; then
    ssh-keygen -qt ed25519 -N '' -f "$RUN/ssh"
    ssh-keygen -qt ed25519 -N '' -f "$RUN/sshd"
    mkdir -p /run/sshd
  fi
  cat >"$RUN/sshd.conf" <<CONF
HostKey $RUN/sshd
AuthorizedKeysFile $RUN/ssh.pub
StrictModes no
PermitRootLogin prohibit-password
PidFile none
UsePAM no
CONF
  spawn edge $SPACE_A /usr/sbin/sshd -D -p 2222 -f "$RUN/sshd.conf"
  until_true 5 listens_tcp $SPACE_A 2222
  # The fastest of its ciphers where the processor helps with AES.
  spawn agent $AGENT_SPACE ssh -N -p 2222 -i "$RUN/ssh" -c aes128-gcm@openssh.com -o ExitOnForwardFailure=yes \
    -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -R 127.0.0.1:9000:127.0.0.1:8080 root@$EDGE
}

start_frp() {
  printf 'bindPort = 7000\nproxyBindAddr = "127.0.0.1"\nauth.token = "lab"\n' >"$RUN/frps.toml"
  cat >"$RUN/frpc.toml" <<TOML
serverAddr = "$EDGE"
serverPort = 7000
auth.token = "lab"
[[proxies]]
name = "web"
type = "tcp"
localIP = "127.0.0.1"
localPort = 8080
remotePort = 9000
TOML
  spawn edge $SPACE_A frps -c "$RUN/frps.toml"
  until_true 5 listens_tcp $SPACE_A 7000
  spawn agent $AGENT_SPACE frpc -c "$RUN/frpc.toml"
}

start_qtunnel() { # start_qtunnel quic|websocket
  URL=http://$EDGE:9000 HOST=lab.qt.test
  rm -rf "$RUN/edge-state" # the leases of thousands of agents before it would be in its memory
  spawn_qtunnel_edge
  until_true 10 edge_pin >/dev/null
  add_qtunnel_agent agent lab "$1"
}
spawn_qtunnel_edge() { # spawn_qtunnel_edge [OPTIONS...]
  echo lab-token >"$RUN/token"
  mkdir -p "$RUN/edge-state"
  spawn edge $SPACE_A "$QTUNNEL" serve --domain qt.test --token-file "$RUN/token" --state-dir "$RUN/edge-state" \
    --http $EDGE:9000 --https $EDGE:9443 --quic $EDGE:9443 --connections-per-visitor 1000 "$@"
}
add_qtunnel_agent() { # add_qtunnel_agent PROCESS SUBDOMAIN TRANSPORT
  mkdir -p "$RUN/$1-state"
  spawn "$1" $AGENT_SPACE "$QTUNNEL" connect 8080 --server $EDGE:9443 --state-dir "$RUN/$1-state" \
    --token-file "$RUN/token" --subdomain "$2" --pin "$(edge_pin)" $(! has_transports || echo --transport "$3")
}
# A binary from before there was a choice has only QUIC over UDP.
has_transports() { "$QTUNNEL" connect --help | grep -q -- --transport; }
edge_pin() { grep -ohEm 1 'sha256/[A-Za-z0-9+/=_-]+' "$RUN/edge.log"; }
