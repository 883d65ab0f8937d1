#!/usr/bin/env bash
# The official Python clients of OpenAI and Anthropic, which the gateway is tested with, in a venv in the cache.
#
#   deploy/dev/llm-clients.sh install      fetches them, once
#   deploy/dev/llm-clients.sh python       prints the Python that has them; fails when they are not there
#
# Relies on python3 with venv and pip. The versions are those below; what they need in turn is left to pip.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

openai=3.57.0
anthropic=2.14.0
home="$cache/tools/llm-clients-$openai-$anthropic"

case "${1:-}" in
install)
    [ ! -f "$home/complete" ] || exit 0
    echo "llm-clients: fetching openai $openai and anthropic $anthropic, once" >&2
    mkdir -p "$cache/tools"
    exec 9>"$cache/tools/.llm-clients.lock"
    flock 9
    [ ! -f "$home/complete" ] || exit 0
    rm -rf "$home"
    python3 -m venv "$home"
    "$home/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
        "openai==$openai" "anthropic==$anthropic" >&2
    touch "$home/complete"
    ;;
python)
    [ -f "$home/complete" ] || {
        echo "no clients (fetch them with: deploy/dev/llm-clients.sh install)" >&2
        exit 1
    }
    echo "$home/bin/python"
    ;;
*)
    echo "usage: $0 install|python" >&2
    exit 2
    ;;
esac
