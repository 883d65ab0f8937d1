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
install) python_home "$home" "schemathesis $version" "schemathesis==$version" ;;
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
