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
    python_home "$home" "LiteLLM $version" "litellm[proxy]==$version"
}

up() { # FOLDER
    cat >"$1/config.yaml" <<EOF
model_list:
  - model_name: smollm2
    litellm_params: {model: hosted_vllm/smollm2, api_base: "$upstream", api_key: none}
general_settings: {master_key: sk-litellm}
EOF
    on_free_port "$1" &&
        echo "http://127.0.0.1:$(cat "$1/port")"
}

resume() { # FOLDER
    local port
    port=$(cat "$1/port")
    # Its list of prices comes with it; it asks nobody for a newer one.
    env -u DATABASE_URL LITELLM_LOCAL_MODEL_COST_MAP=True NO_PROXY='*' "$home/bin/litellm" --config "$1/config.yaml" \
        --host 127.0.0.1 --port "$port" --telemetry False >>"$1/server.log" 2>&1 </dev/null &
    echo $! >"$1/pid"
    answers "$1" 120 "http://127.0.0.1:$port/health/liveliness"
}

halt() { kill_at_once "$1"; }

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
