#!/usr/bin/env bash
# A real Redis server on loopback, with a free port, a password and its data in a temporary folder, for tests.
#
#   deploy/dev/redis.sh start|stop|run [cluster]      see server.sh
#
# With `cluster` it is a cluster of one node that has all slots. Uses the Debian package `redis-server`
# (`deploy/dev/setup.sh test` sees to it). It keeps nothing on disk, so after `halt` and `resume` it is empty, as a cache may
# be.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/server.sh"

server=$(command -v redis-server || command -v valkey-server || true)
client=$(command -v redis-cli || command -v valkey-cli || true)
[ -n "$server" ] && [ -n "$client" ] || {
    echo "no Redis server (Debian package redis-server)" >&2
    exit 1
}

up() { # FOLDER
    local data="$1/data" password
    mkdir -m 700 "$data"
    password=$(od -An -N12 -tx1 /dev/urandom | tr -d ' \n')
    # Somebody else may take the port between the question and the start.
    for _ in 1 2 3 4 5; do
        free_port >"$1/port"
        configure "$data" "$(cat "$1/port")" "$password"
        if resume "$1"; then
            echo "redis${cluster:++cluster}://:$password@127.0.0.1:$(cat "$1/port")"
            return
        fi
    done
    cat "$data/server.log" >&2
    return 1
}

configure() { # DATA PORT PASSWORD
    # In a file, since everybody reads arguments.
    (umask 077 && echo "$3" >"$1/password" && cat >"$1/redis.conf") <<END
bind 127.0.0.1
port $2
requirepass $3
dir $1
daemonize yes
pidfile $1/server.pid
logfile $1/server.log
save ""
appendonly no
END
    [ -z "$cluster" ] || cat >>"$1/redis.conf" <<END
cluster-enabled yes
cluster-announce-ip 127.0.0.1
# Beside the port of clients; the default adds 10000, which may be too much.
cluster-port $(free_port)
END
}

ask() { # FOLDER WORD...
    local folder="$1"
    shift
    REDISCLI_AUTH=$(cat "$folder/data/password") "$client" -p "$(cat "$folder/port")" "$@" 2>/dev/null
}

resume() { # FOLDER
    "$server" "$1/data/redis.conf" >/dev/null 2>&1 </dev/null || return 1
    for _ in $(seq 300); do
        if [ "$(ask "$1" ping)" = PONG ]; then
            [ -n "$cluster" ] || return 0
            # Refused where it has them already.
            ask "$1" cluster addslotsrange 0 16383 >/dev/null || true
            # The state says ok before writes are taken; a node that starts again waits with both.
            [ "$(ask "$1" set va:ready 1 px 1)" != OK ] || return 0
        fi
        # A server that could not have its port has ended.
        if [ -f "$1/data/server.pid" ]; then
            kill -0 "$(cat "$1/data/server.pid")" 2>/dev/null || return 1
        fi
        sleep 0.05
    done
    return 1
}

halt() { # FOLDER
    local pid
    pid=$(cat "$1/data/server.pid" 2>/dev/null) || return 0
    kill -KILL "$pid" 2>/dev/null || true
    for _ in $(seq 200); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.02
    done
    rm -f "$1/data/server.pid"
}

cluster="${2:-}"
serve redis "${1:-}"
