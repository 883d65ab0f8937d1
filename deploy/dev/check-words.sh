#!/usr/bin/env bash
# Fails when a tracked file names a folder of somebody's machine or the host of a package registry. Such names are true
# on one machine only: a temporary folder comes from mktemp or the tempfile crate, a package from its ordinary client.
# Lock files are left out: cargo writes a registry's name into its own.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

paths='/(work|farm|root|tmp)/'
hosts='(pypi|npmjs|pythonhosted)\.(org|com)|(index|static)\.crates\.io|crates\.io/|deb\.debian\.org|archive\.ubuntu\.com|repo1?\.maven|proxy\.golang\.org'
status=0
check() { # WHAT PATTERN PATHSPEC...
    local hits what=$1 pattern=$2
    shift 2
    hits=$(git grep -nIE "$pattern" -- "$@" ':!*.lock' ':!deploy/dev/check-words.sh' || true)
    [ -n "$hits" ] || return 0
    printf 'check-words: %s in tracked files:\n%s\n' "$what" "$hits" >&2
    status=1
}
check "folders of one machine" "$paths" .
check "hosts of package registries" "$hosts" .
exit "$status"
