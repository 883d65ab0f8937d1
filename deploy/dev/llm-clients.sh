#!/usr/bin/env bash
# The clients that the gateway is tested with, unchanged, in the cache: those of OpenAI and Anthropic for Python and for
# Node, and LangChain's.
#
#   deploy/dev/llm-clients.sh install      fetches them, once; says which of them could not be
#   deploy/dev/llm-clients.sh python       prints the Python that has both official clients; fails when they are not there
#   deploy/dev/llm-clients.sh langchain    prints the Python that has langchain-openai
#   deploy/dev/llm-clients.sh node         prints the folder whose `node_modules` has both official clients
#
# Relies on python3 with venv and pip, and on node 20 or newer with npm. Versions are those below and of
# llm-clients/package-lock.json; what the Python clients need in turn is left to pip.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

openai=3.57.0
anthropic=2.14.0
langchain=1.7.4
lock="$root/deploy/dev/llm-clients/package-lock.json"
sdk_home="$cache/tools/llm-clients-$openai-$anthropic"
langchain_home="$cache/tools/langchain-openai-$langchain"
node_home="$cache/tools/llm-clients-node-$(sha256sum "$lock" | cut -c1-16)"

install_node() {
    [ ! -f "$node_home/complete" ] || return 0
    command -v npm >/dev/null || {
        echo "llm-clients: the clients for Node need node and npm: install them (Debian packages nodejs, npm)" >&2
        return 1
    }
    echo "llm-clients: fetching the clients for Node, once" >&2
    rm -rf "$node_home"
    mkdir "$node_home"
    cp "${lock%/*}/package.json" "$lock" "$node_home"
    if ! (cd "$node_home" && npm ci --no-audit --no-fund --ignore-scripts >log 2>&1); then
        tail -n 20 "$node_home/log" >&2
        return 1
    fi
    touch "$node_home/complete"
}

there() { # FOLDER WHAT TO_PRINT
    [ -f "$1/complete" ] || {
        echo "no $2 (fetch it with: deploy/dev/llm-clients.sh install)" >&2
        exit 1
    }
    echo "$3"
}

case "${1:-}" in
install)
    failed=0
    python_home "$sdk_home" "the official clients for Python" "openai==$openai" "anthropic==$anthropic" || failed=1
    python_home "$langchain_home" "LangChain" "langchain-openai==$langchain" || failed=1
    # Two test runs at once take turns.
    exec 9>"$cache/tools/.llm-clients.lock"
    flock 9
    install_node || failed=1
    exit "$failed"
    ;;
python) there "$sdk_home" "official clients for Python" "$sdk_home/bin/python" ;;
langchain) there "$langchain_home" "LangChain" "$langchain_home/bin/python" ;;
node) there "$node_home" "official clients for Node" "$node_home" ;;
*)
    echo "usage: $0 install|python|langchain|node" >&2
    exit 2
    ;;
esac
