#!/usr/bin/env bash
# Builds `va`, fetches the embedding model and the sample corpus, starts the whole platform in the foreground on its
# embedded defaults and indexes the sample into the collection `help`. Ctrl-C ends it, and only what was started here.
#
#   VA_DATA    where data is kept        (./va-data)
#   VA_LISTEN  address of the HTTP API   (127.0.0.1:8080)
#
# Relies on setup.sh having run. A second run finds everything in place: it builds, fetches and indexes nothing again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

export VA_DATA="${VA_DATA:-./va-data}"
listen="${VA_LISTEN:-127.0.0.1:8080}"
log="$VA_DATA/sample-index.log"

cargo build --workspace --bins
"$va" model pull multilingual-e5-small
deploy/dev/fetch-corpora.sh sample
mkdir -p "$VA_DATA"

# Once the server is ready: says where it is and indexes the sample, through the server, as a user would.
greet_and_index() {
    until curl -fs -o /dev/null --max-time 2 "http://$listen/readyz"; do sleep 0.3; done
    cat <<EOF

  VoiceAssistant is up   http://$listen     (Ctrl-C ends it)
  data                   $VA_DATA     (admin key in $VA_DATA/admin.key)
  sample corpus          being indexed into the collection \`help\`, log in $log

  In another terminal, in this directory:
    alias va='$va'
    va search "如何冻结行或列" --collection help
    va search "freeze rows or columns" --collection help

EOF
    if "$va" index "$VA_CORPORA/sample/docs" --collection help >"$log" 2>&1; then
        echo "  The sample corpus is indexed."
    else
        echo "  Indexing the sample failed, see $log" >&2
    fi
}

server= greeter=
# Both children lead process groups of their own, so that each gets one signal, from here. Only these groups are touched.
stop() {
    [ -z "$greeter" ] || kill -TERM -- "-$greeter" 2>/dev/null || true
    [ -z "$server" ] || kill -TERM -- "-$server" 2>/dev/null || true
}
trap stop INT TERM HUP EXIT

set -m
"$va" up --data "$VA_DATA" --listen "$listen" </dev/null &
server=$!
greet_and_index </dev/null &
greeter=$!
set +m

# A signal interrupts `wait`; the server then shuts down in its own time, and its exit code is ours.
status=0
wait "$server" || status=$?
while kill -0 "$server" 2>/dev/null; do
    status=0
    wait "$server" || status=$?
done
exit "$status"
