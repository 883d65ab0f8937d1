#!/usr/bin/env bash
# schemathesis, which asks an API whatever its OpenAPI document permits and forbids, in a venv in the cache.
#
#   deploy/dev/schemathesis.sh install      fetches it, once
#   deploy/dev/schemathesis.sh program      prints the program; fails when it is not there
#
# Relies on python3 with venv and pip. The version is the one below; what it needs in turn is left to pip.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

version=4.32.5
home="$cache/tools/schemathesis-$version"

case "${1:-}" in
install)
    [ ! -f "$home/complete" ] || exit 0
    echo "schemathesis: fetching $version, once" >&2
    mkdir -p "$cache/tools"
    exec 9>"$cache/tools/.schemathesis.lock"
    flock 9
    [ ! -f "$home/complete" ] || exit 0
    rm -rf "$home"
    python3 -m venv "$home"
    "$home/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: "schemathesis==$version" >&2
    touch "$home/complete"
    ;;
program)
    [ -f "$home/complete" ] || {
        echo "no schemathesis (fetch it with: deploy/dev/schemathesis.sh install)" >&2
        exit 1
    }
    echo "$home/bin/schemathesis"
    ;;
*)
    echo "usage: $0 install|program" >&2
    exit 2
    ;;
esac
