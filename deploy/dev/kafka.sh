#!/usr/bin/env bash
# Real Apache Kafka brokers on loopback, for tests and for trying things out: KRaft, no ZooKeeper, no container.
#
#   deploy/dev/kafka.sh fetch                 fetches Kafka into the cache folder; costs nothing when it is there
#   deploy/dev/kafka.sh start [FOLDER]        fetches, starts, waits until the brokers answer, then prints
#                                             `bootstrap HOST:PORT[,...]`, `folder FOLDER` and, for tests that cut
#                                             connections, for each broker `proxied LISTENS TOLD`: a second door whose
#                                             clients are told to come to port TOLD, where a proxy has to be
#   deploy/dev/kafka.sh stop FOLDER           ends the brokers of that folder and removes it
#   deploy/dev/kafka.sh run                   starts, prints HOST:PORT[,...], and stops when its input ends; answers
#                                             each line of it: `kill N` and `resume N` (a broker, by number), `doors`
#                                             (LISTENS:TOLD for each broker), `secured` (HOST:PORT FOLDER: see --secure)
#
#   --brokers 1|3       how many (1)
#   --version VERSION   which Kafka (KAFKA_VERSION, else 4.3.1); the oldest supported is 3.7.2
#   --secure            a third door, with TLS and SASL: user `tester`, password `not a secret`, by PLAIN or SCRAM-SHA-256.
#                       FOLDER has the authority, ca.pem, and a certificate for clients, client.pem and client.key
#
# Maven fetches by coordinates, because there is no package of the whole distribution: the server's main class is
# started on its class path instead of through the distribution's scripts. Data, logs and process ids are in FOLDER
# (a new temporary one when not given). Relies on maven, a Java runtime of version 17 or newer and python3.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

die() { printf 'kafka: %s\n' "$*" >&2; exit 1; }
usage() { sed -n '2,20s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

brokers=1
secure=
version="${KAFKA_VERSION:-4.3.1}"
words=()
while [ $# -gt 0 ]; do
    case $1 in
        --brokers) brokers=${2:?"--brokers needs a number"}; shift 2 ;;
        --version) version=${2:?"--version needs a version"}; shift 2 ;;
        --secure) secure=1; shift ;;
        -h | --help) usage; exit ;;
        *) words+=("$1"); shift ;;
    esac
done
case $brokers in 1 | 3) ;; *) die "$brokers brokers: use 1 or 3" ;; esac
[[ $version =~ ^[0-9]+(\.[0-9]+)+$ ]] || die "version \`$version\`: use an exact one such as 4.3.1 or 3.7.2"
jars="$cache/kafka/$version"

# Maven resolves exactly this version (a range could move) with what it needs at run time.
fetch() {
    [ ! -f "$jars/complete" ] || return 0
    command -v mvn >/dev/null || die "fetching Kafka needs maven: install it (Debian package maven)"
    mkdir -p "$cache/kafka"
    # Two test runs at once take turns.
    exec 9>"$cache/kafka/.lock"
    flock 9
    [ ! -f "$jars/complete" ] || return 0
    local work
    work=$(mktemp -d "$cache/kafka/.fetch.XXXXXX")
    cat >"$work/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>voiceassistant</groupId>
  <artifactId>kafka-for-tests</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>[$version]</version>
    </dependency>
  </dependencies>
</project>
POM
    mvn -q -B -f "$work/pom.xml" dependency:copy-dependencies -DincludeScope=runtime \
        -DoutputDirectory="$work/jars" >"$work/log" 2>&1 ||
        { cat "$work/log" >&2; rm -rf "$work"; die "maven could not fetch Kafka $version"; }
    [ -f "$work/jars/kafka_2.13-$version.jar" ] || { rm -rf "$work"; die "maven fetched another version than $version"; }
    touch "$work/jars/complete"
    rm -rf "$jars"
    mv "$work/jars" "$jars"
    rm -rf "$work"
    exec 9>&-
}

# A small heap and the simple compiler: it has to start quickly and carries little. KAFKA_JVM has other options for a
# broker that is to be fast.
read -ra jvm <<<"${KAFKA_JVM:--XX:+UseSerialGC -XX:TieredStopAtLevel=1}"
java=(java -Xms"${KAFKA_HEAP_MIN:-128m}" -Xmx"${KAFKA_HEAP_MAX:-512m}" "${jvm[@]}" -XX:-UsePerfData -cp "$jars/*")

# Ports that are free now, all different: the sockets are open at the same time.
free_ports() { # COUNT
    python3 -c 'import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for each in sockets: each.bind(("127.0.0.1", 0))
print(*[each.getsockname()[1] for each in sockets])' "$1"
}

# Whether the broker answers an ApiVersions request, the first thing that every client sends.
answers() { # PORT
    python3 -c 'import socket, struct, sys
try:
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 2) as s:
        request = struct.pack(">hhih", 18, 0, 1, 4) + b"test"
        s.sendall(struct.pack(">i", len(request)) + request)
        sys.exit(len(s.recv(8)) == 0)
except OSError:
    sys.exit(1)' "$1"
}

write_properties() { # NODE FOLDER
    local node=$1 at=$(($1 - 1)) isr=1 replicas=1
    if [ "$brokers" = 3 ]; then replicas=3 isr=2; fi
    cat >"$2/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=$node
controller.quorum.voters=$voters
listeners=PLAINTEXT://127.0.0.1:${client_ports[at]},PROXIED://127.0.0.1:${proxied_ports[at]},CONTROLLER://127.0.0.1:${quorum_ports[at]}${secure:+,SECURED://127.0.0.1:${secured_ports[at]}}
advertised.listeners=PLAINTEXT://127.0.0.1:${client_ports[at]},PROXIED://127.0.0.1:${told_ports[at]}${secure:+,SECURED://127.0.0.1:${secured_ports[at]}}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,SECURED:SASL_SSL
log.dirs=$2/data
offsets.topic.replication.factor=$replicas
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=$replicas
transaction.state.log.min.isr=$isr
transaction.state.log.num.partitions=4
min.insync.replicas=$isr
default.replication.factor=$replicas
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
auto.create.topics.enable=false
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=16777216
PROPERTIES
    [ -z "$secure" ] || cat >>"$2/server.properties" <<PROPERTIES
listener.name.secured.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256
listener.name.secured.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_$user="$password";
listener.name.secured.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.secured.ssl.keystore.type=PEM
listener.name.secured.ssl.keystore.location=$certificates/server.pem
listener.name.secured.ssl.truststore.type=PEM
listener.name.secured.ssl.truststore.location=$certificates/ca.pem
listener.name.secured.ssl.client.auth=requested
PROPERTIES
}

user=tester password='not a secret'

# An authority, and what it certifies: the brokers and one client. For one run, on loopback.
certify() { # FOLDER
    command -v openssl >/dev/null || die "--secure needs openssl: install it (Debian package openssl)"
    local name key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc) log=$1/log
    openssl req -x509 "${key[@]}" -days 2 -subj "/CN=authority for tests" -keyout "$1/ca.key" -out "$1/ca.pem" 2>"$log"
    for name in server client; do
        openssl req "${key[@]}" -subj "/CN=$name" -keyout "$1/$name.key" -out "$1/$name.csr" 2>>"$log"
        openssl x509 -req -in "$1/$name.csr" -CA "$1/ca.pem" -CAkey "$1/ca.key" -CAcreateserial -days 2 \
            -extfile <(echo "subjectAltName=IP:127.0.0.1,DNS:localhost") -out "$1/$name.pem" 2>>"$log"
    done
    cat "$1/server.key" >>"$1/server.pem"
}

launch() { # FOLDER NODE
    # A session of its own: Ctrl-C in the terminal is for the script, which then stops the brokers.
    setsid "${java[@]}" kafka.Kafka "$1/$2/server.properties" >>"$1/$2/server.log" 2>&1 9>&- </dev/null &
    echo $! >"$1/$2/pid"
    # Its end is told by whoever ends it.
    disown
}

# Waits until the broker answers.
await() { # FOLDER NODE
    local deadline=$((SECONDS + 90))
    until answers "${client_ports[$(($2 - 1))]}"; do
        kill -0 "$(cat "$1/$2/pid")" 2>/dev/null && [ $SECONDS -lt $deadline ] ||
            { tail -n 30 "$1/$2/server.log" >&2; die "broker $2 did not start"; }
        sleep 0.1
    done
}

end() { # PID
    kill -KILL "$1" 2>/dev/null || true
    while kill -0 "$1" 2>/dev/null; do sleep 0.05; done
}

start() { # FOLDER
    fetch
    command -v java >/dev/null || die "Kafka needs Java 17 or newer: install it (Debian package openjdk-17-jre-headless)"
    local folder=$1 node ports cluster=
    mkdir -p "$folder"
    [ ! -e "$folder/brokers" ] || die "\`$folder\` is in use: stop it first"
    echo "$brokers" >"$folder/brokers"
    # When the start fails or is interrupted, nothing stays behind.
    trap "stop $(printf %q "$folder")" EXIT
    trap 'exit 1' INT TERM
    read -ra ports <<<"$(free_ports $((5 * brokers)))"
    client_ports=("${ports[@]:0:brokers}")
    quorum_ports=("${ports[@]:brokers:brokers}")
    proxied_ports=("${ports[@]:2 * brokers:brokers}")
    told_ports=("${ports[@]:3 * brokers:brokers}")
    secured_ports=("${ports[@]:4 * brokers:brokers}")
    certificates=$folder/certificates
    local scram=()
    if [ -n "$secure" ]; then
        mkdir -p "$certificates"
        certify "$certificates"
        scram=(--add-scram "SCRAM-SHA-256=[name=$user,password=$password]")
    fi
    voters=
    for node in $(seq "$brokers"); do voters+="${voters:+,}$node@127.0.0.1:${quorum_ports[$((node - 1))]}"; done
    cluster=$(python3 -c 'import base64, uuid; print(base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("="))')
    # An id that begins with a dash would look like an option.
    cluster="A${cluster:1}"
    for node in $(seq "$brokers"); do
        mkdir -p "$folder/$node"
        write_properties "$node" "$folder/$node"
        "${java[@]}" kafka.tools.StorageTool format --cluster-id "$cluster" --config "$folder/$node/server.properties" \
            "${scram[@]}" >"$folder/$node/format.log" 2>&1 ||
            { cat "$folder/$node/format.log" >&2; die "formatting the data of broker $node failed"; }
    done
    for node in $(seq "$brokers"); do launch "$folder" "$node"; done
    local bootstrap=
    for node in $(seq "$brokers"); do
        await "$folder" "$node"
        bootstrap+="${bootstrap:+,}127.0.0.1:${client_ports[$((node - 1))]}"
    done
    trap - EXIT INT TERM
    echo "bootstrap $bootstrap"
    echo "folder $folder"
    for node in $(seq "$brokers"); do echo "proxied ${proxied_ports[$((node - 1))]} ${told_ports[$((node - 1))]}"; done
    [ -z "$secure" ] || echo "secured 127.0.0.1:${secured_ports[0]} $certificates"
}

stop() { # FOLDER
    [ -f "$1/brokers" ] || die "\`$1\` is not a folder that \`start\` made"
    local file
    for file in "$1"/*/pid; do
        [ -f "$file" ] || continue
        # The data goes away with it, so there is nothing to shut down in order.
        end "$(cat "$file")"
    done
    rm -rf "$1"
}

case ${words[0]:-} in
    fetch) fetch ;;
    start) start "${words[1]:-$(mktemp -d)}" ;;
    run)
        folder=$(mktemp -d)
        said=$(mktemp)
        start "$folder" >"$said"
        trap 'stop "$folder"' EXIT
        trap 'exit 1' INT TERM HUP
        sed -n 's/^bootstrap //p' "$said"
        rm -f "$said"
        while read -r command node; do
            case "$command ${node:-}" in
                kill\ [1-3]) end "$(cat "$folder/$node/pid")"; echo killed ;;
                resume\ [1-3]) launch "$folder" "$node"; await "$folder" "$node"; echo running ;;
                "doors ") paste -sd, <(for at in $(seq 0 $((brokers - 1))); do echo "${proxied_ports[at]}:${told_ports[at]}"; done) ;;
                "secured ") echo "127.0.0.1:${secured_ports[0]} $certificates" ;;
                *) die "\`$command ${node:-}\`: use kill N, resume N or doors" ;;
            esac
        done
        ;;
    stop) stop "${words[1]:?"stop needs the folder that start printed"}" ;;
    *) usage >&2; exit 2 ;;
esac
