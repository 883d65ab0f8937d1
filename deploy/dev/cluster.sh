#!/usr/bin/env bash
# The servers that several `va` processes share, on loopback, to try a cluster on one machine: Kafka, PostgreSQL, S3 and, where
# it is installed, Redis. Writes what the processes need to know into FOLDER.
#
#   deploy/dev/cluster.sh start [FOLDER]     FOLDER/va.yaml and FOLDER/env (./cluster)
#   deploy/dev/cluster.sh stop [FOLDER]      ends the servers and removes the folder with all data
#
#   --brokers 1|3                            of Kafka (1)
#
# Then, each in a shell of its own:
#
#   source cluster/env
#   va serve
#   va worker --data cluster/worker-1
#
# Relies on the servers' own scripts, which are beside it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

brokers=1
words=()
while [ $# -gt 0 ]; do
    case "$1" in
    --brokers) brokers="${2:?--brokers wants 1 or 3}"; shift ;;
    --help | -h) sed -n '2,16s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
    *) words+=("$1") ;;
    esac
    shift
done
folder="${words[1]:-./cluster}"

start() {
    [ ! -e "$folder" ] || { echo "cluster: $folder is there already; end it with: $0 stop $folder" >&2; exit 1; }
    mkdir -m 711 -p "$folder"
    folder=$(cd "$folder" && pwd)
    trap 'stop >/dev/null 2>&1' EXIT
    local kafka database objects cache="" host user key secret bucket
    echo "cluster: starting Kafka, PostgreSQL and S3" >&2
    kafka=$("$here/kafka.sh" start "$folder/kafka" --brokers "$brokers" | awk '$1 == "bootstrap" { print $2 }')
    database=$("$here/postgres.sh" start)
    "$here/s3.sh" install
    objects=$("$here/s3.sh" start)
    ! command -v redis-server >/dev/null || cache=$("$here/redis.sh" start)
    # http://KEY:SECRET@HOST:PORT/BUCKET
    user=${objects#http://} && host=${user#*@} && bucket=${host#*/} && host=${host%%/*} && user=${user%%@*}
    key=${user%%:*} secret=${user#*:}
    (
        umask 077
        {
            echo "log: {brokers: \"$kafka\", kafka: {replication_factor: $brokers, session_timeout_ms: 6000}}"
            echo "catalog: {url: \"$database\"}"
            echo "objects: {url: \"s3://$bucket/va\"}"
            echo "indexes: {shared: true}"
            [ -z "$cache" ] || echo "cache: {url: \"$cache\"}"
        } >"$folder/va.yaml"
        cat >"$folder/env" <<END
export VA_CONFIG='$folder/va.yaml' VA_DATA='$folder/serve'
export AWS_ACCESS_KEY_ID='$key' AWS_SECRET_ACCESS_KEY='$secret' AWS_REGION=us-east-1
export AWS_ENDPOINT_URL='http://$host' AWS_ALLOW_HTTP=true
END
    )
    trap - EXIT
    echo "cluster: up. In each shell: source ${words[1]:-./cluster}/env" >&2
}

stop() {
    [ ! -d "$folder" ] || folder=$(cd "$folder" && pwd)
    [ ! -d "$folder/kafka" ] || "$here/kafka.sh" stop "$folder/kafka" || true
    "$here/postgres.sh" stop || true
    "$here/s3.sh" stop || true
    ! command -v redis-server >/dev/null || "$here/redis.sh" stop || true
    rm -rf "$folder"
}

case "${words[0]:-}" in
start) start ;;
stop) stop ;;
*)
    sed -n '2,16s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
