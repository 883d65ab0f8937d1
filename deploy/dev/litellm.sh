#!/usr/bin/env bash
# A real LiteLLM proxy on loopback, in front of a server that speaks OpenAI's chat protocol: what speaks Anthropic's Messages
# then without being Anthropic. Its model is `smollm2`, its key `sk-litellm`.
#
#   deploy/dev/litellm.sh install          fetches it into the cache, once (some 900 MB with what it needs)
#   deploy/dev/litellm.sh run UPSTREAM     starts it for a server whose URL ends in /v1; see server.sh
#
# Relies on python3 with venv and pip. The version is the one below: later ones ask for a package that is not published.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$root/deploy/dev/server.sh"

version=1.106.12
home="$cache/tools/litellm-$version"
upstream="${2:-}"

install_proxy() {
    [ ! -f "$home/complete" ] || return 0
    echo "litellm: fetching $version, once" >&2
    mkdir -p "$cache/tools"
    # Two test runs at once take turns.
    exec 9>"$cache/tools/.litellm.lock"
    flock 9
    [ ! -f "$home/complete" ] || return 0
    rm -rf "$home"
    python3 -m venv "$home" &&
        "$home/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
            "litellm[proxy]==$version" >&2 || return 1
    touch "$home/complete"
}

up() { # FOLDER
    cat >"$1/config.yaml" <<EOF
model_list:
  - model_name: smollm2
    litellm_params: {model: hosted_vllm/smollm2, api_base: "$upstream", api_key: none}
general_settings: {master_key: sk-litellm}
EOF
    for _ in 1 2 3 4 5; do
        free_port >"$1/port"
        if resume "$1"; then
            echo "http://127.0.0.1:$(cat "$1/port")"
            return
        fi
    done
    tail -n 30 "$1/server.log" >&2
    return 1
}

resume() { # FOLDER
    local port
    port=$(cat "$1/port")
    # Its list of prices comes with it; it asks nobody for a newer one.
    env -u DATABASE_URL LITELLM_LOCAL_MODEL_COST_MAP=True NO_PROXY='*' "$home/bin/litellm" --config "$1/config.yaml" \
        --host 127.0.0.1 --port "$port" --telemetry False >>"$1/server.log" 2>&1 </dev/null &
    echo $! >"$1/pid"
    for _ in $(seq 1200); do
        kill -0 "$(cat "$1/pid")" 2>/dev/null || return 1
        ! curl -s -f -o /dev/null "http://127.0.0.1:$port/health/liveliness" || return 0
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
install) install_proxy ;;
*)
    [ -f "$home/complete" ] || {
        echo "no LiteLLM proxy (fetch it with: deploy/dev/litellm.sh install)" >&2
        exit 1
    }
    [ -n "$upstream" ] || {
        echo "usage: $0 run UPSTREAM" >&2
        exit 2
    }
    serve litellm "$1"
    ;;
esac
