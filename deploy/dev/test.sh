#!/usr/bin/env bash
# Runs every test on real models and documents, shows failures, and says plainly what was skipped and why.
#
#   deploy/dev/test.sh [options of cargo test, e.g. -p va-catalog]
#
# A test that cannot run prints `SKIPPED: reason` and returns. With CI=true that is a failure: there nothing may be missing.
# The complete output is kept in test.log in the target folder.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

deploy/dev/setup.sh test
# Tests that need a server start one themselves (deploy/dev/server.sh). Without it they are skipped, and tell.
deploy/dev/s3.sh install || echo "the S3 server could not be built, see above" >&2
deploy/dev/llama.sh install || echo "the model server could not be fetched, see above" >&2
deploy/dev/schemathesis.sh install || echo "schemathesis could not be fetched, see above" >&2
deploy/dev/llm-clients.sh install || echo "not all clients of models could be fetched, see above" >&2
deploy/dev/litellm.sh install || echo "the LiteLLM proxy could not be fetched, see above" >&2
scope=("$@")
[ ${#scope[@]} -gt 0 ] || scope=(--workspace)

# Kafka and Redis are tested on real servers. Cargo knows the feature only where the package is selected.
features=()
case "${scope[*]}" in
    *--workspace* | *va-serving*) features=(--features va-serving/kafka) ;;
    *va-connectors*) features=(--features va-connectors/kafka,va-connectors/redis) ;;
esac

# One build for the binary and all tests: separate ones could differ in features and compile big dependencies twice.
cargo build --workspace --bins --tests --features va-serving/kafka
deploy/dev/kafka.sh fetch
deploy/dev/oidc.sh fetch
deploy/dev/fetch-corpora.sh
for model in multilingual-e5-small all-minilm-l6-v2 smollm2-135m-instruct; do "$va" model pull "$model"; done

log="$CARGO_TARGET_DIR/test.log"
# --show-output makes passing tests print too; only their SKIPPED lines are let through to the screen.
quiet() {
    awk '
        $0 == "successes:" { hidden = 1 }
        $0 == "failures:" || /^test result:/ { hidden = 0 }
        !hidden || /^ *SKIPPED:/ { print; fflush() }
    '
}
status=0
cargo test "${scope[@]}" "${features[@]}" --no-fail-fast -- --show-output 2>&1 | tee "$log" | quiet || status=$?

skipped=$(grep -E '^ *SKIPPED:' "$log" | sed 's/^ *//' | sort | uniq -c || true)
passed=$(awk '/^test result:/ { for (i = 1; i < NF; i++) { if ($(i+1) ~ /^passed/) p += $i; if ($(i+1) ~ /^failed/) f += $i } }
    END { printf "%d passed, %d failed", p, f }' "$log")
echo
if [ -n "$skipped" ]; then
    echo "skipped (times, reason):"
    printf '%s\n' "$skipped"
    if [ "${CI:-}" = true ]; then
        echo "with CI=true a skipped test is a failure"
        [ "$status" != 0 ] || status=1
    fi
else
    echo "nothing was skipped"
fi
echo "complete output: $log"
echo "$passed"
exit "$status"
