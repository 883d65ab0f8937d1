#!/usr/bin/env bash
# A real PostgreSQL server on loopback, with a free port, a password and its data in a temporary folder, for tests.
#
#   deploy/dev/postgres.sh start|stop|run [tls]      see server.sh
#
# Tests are `va`, who owns the databases and is no superuser: a superuser is above row-level security, which would never be
# in force then. The superuser is `admin`, with the same password.
#
# With `tls` the server also speaks TLS, with a certificate that nobody vouches for; that needs openssl.
# Uses the newest server that is installed (Debian package `postgresql`; `deploy/dev/setup.sh test` sees to it). The server
# refuses to run as root, so root lends it to the user `postgres`, or `nobody`. A cluster that the package itself may have
# made is left alone. What is in memory only is lost in a power cut (fsync is off): this is for tests.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/server.sh"

bin=$(compgen -G '/usr/lib/postgresql/*/bin' | sort -V | tail -1 || true)
[ -x "$bin/initdb" ] || bin=$(dirname "$(command -v initdb || true)")
[ -x "$bin/initdb" ] || {
    echo "no PostgreSQL server (Debian package postgresql)" >&2
    exit 1
}

as=()
if [ "$(id -u)" = 0 ]; then
    user=nobody
    ! id postgres >/dev/null 2>&1 || user=postgres
    as=(setpriv --reuid="$user" --regid="$(id -g "$user")" --clear-groups env -u HOME)
fi

up() { # FOLDER
    local data="$1/data" password
    mkdir -m 700 "$data"
    password=$(od -An -N12 -tx1 /dev/urandom | tr -d ' \n')
    # Beside the data, where only root and the server's user can read.
    (umask 077 && echo "$password" >"$data.password")
    [ ${#as[@]} = 0 ] || chown "$user" "$data" "$data.password"
    "${as[@]}" "$bin/initdb" --pgdata="$data" --username=admin --pwfile="$data.password" --auth=scram-sha-256 \
        --encoding=UTF8 --locale=C --no-sync >"$1/initdb.log" 2>&1 </dev/null || {
        cat "$1/initdb.log" >&2
        return 1
    }
    # Before the server listens, so no client is needed for it. One statement a line.
    "${as[@]}" "$bin/postgres" --single -c exit_on_error=true -D "$data" postgres >"$data/role.log" 2>&1 <<EOF || {
CREATE ROLE va LOGIN CREATEDB CREATEROLE PASSWORD '$password'
ALTER DATABASE postgres OWNER TO va
EOF
        cat "$data/role.log" >&2
        return 1
    }
    if [ "$tls" = tls ]; then
        "${as[@]}" openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout "$data/server.key" \
            -out "$data/server.crt" >/dev/null 2>&1
        echo "ssl = on" | "${as[@]}" tee -a "$data/postgresql.conf" >/dev/null
    fi
    # Somebody else may take the port between the question and the start.
    for _ in 1 2 3 4 5; do
        free_port >"$1/port"
        if resume "$1"; then
            echo "postgres://va:$password@127.0.0.1:$(cat "$1/port")/postgres"
            return
        fi
    done
    cat "$data/server.log" >&2
    return 1
}

resume() { # FOLDER
    "${as[@]}" "$bin/pg_ctl" start --pgdata="$1/data" --wait --timeout=60 --silent --log="$1/data/server.log" \
        -o "-c listen_addresses=127.0.0.1 -c port=$(cat "$1/port") -c unix_socket_directories= -c fsync=off -c max_connections=300" \
        >/dev/null 2>&1 </dev/null
}

halt() { # FOLDER
    [ -f "$1/data/postmaster.pid" ] || return 0
    # Stops the process of that file's pid, and waits for it.
    "${as[@]}" "$bin/pg_ctl" stop --pgdata="$1/data" --mode=fast --wait --timeout=60 --silent >/dev/null 2>&1 </dev/null
}

tls="${2:-}"
serve postgres "${1:-}"
