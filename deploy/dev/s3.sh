#!/usr/bin/env bash
# A real S3 server process on loopback, with a free port, keys, one bucket and its data in a temporary folder, for tests.
#
#   deploy/dev/s3.sh install            builds the server from its crate into the cache, once
#   deploy/dev/s3.sh start|stop|run     see server.sh; the URL is http://KEY:SECRET@HOST:PORT/BUCKET
#
# The server is s3s-fs: S3's protocol, signatures included, on a folder. Relies on a Rust toolchain.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$root/deploy/dev/server.sh"

version=0.14.1
home="$cache/tools/s3s-fs-$version"

install_server() {
    [ ! -x "$home/bin/s3s-fs" ] || return 0
    echo "s3: building s3s-fs $version, once" >&2
    local target
    # Apart from our own, whose profiles and lock it has nothing to do with; afterwards nobody needs it.
    target=$(mktemp -d "${TMPDIR:-/tmp}/voiceassistant-s3s-XXXXXX")
    CARGO_TARGET_DIR="$target" cargo install s3s-fs --version "$version" --features binary --locked --quiet --root "$home" ||
        { rm -rf "$target"; return 1; }
    rm -rf "$target"
}

up() { # FOLDER
    mkdir -p "$1/data/objects"
    (umask 077 && od -An -N12 -tx1 /dev/urandom | tr -d ' \n' >"$1/secret")
    on_free_port "$1" &&
        echo "http://va:$(cat "$1/secret")@127.0.0.1:$(cat "$1/port")/objects"
}

resume() { # FOLDER
    local port
    port=$(cat "$1/port")
    "$home/bin/s3s-fs" --host 127.0.0.1 --port "$port" --access-key va --secret-key "$(cat "$1/secret")" "$1/data" \
        >>"$1/server.log" 2>&1 </dev/null &
    echo $! >"$1/pid"
    for _ in $(seq 100); do
        kill -0 "$(cat "$1/pid")" 2>/dev/null || return 1
        ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || return 0
        sleep 0.1
    done
    return 1
}

halt() { # FOLDER
    local pid
    pid=$(cat "$1/pid" 2>/dev/null) || return 0
    rm -f "$1/pid"
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 100); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null || true
}

case "${1:-}" in
install) install_server ;;
*)
    [ -x "$home/bin/s3s-fs" ] || {
        echo "no S3 server (build it with: deploy/dev/s3.sh install)" >&2
        exit 1
    }
    serve s3 "${1:-}"
    ;;
esac
