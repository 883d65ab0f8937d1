# Sourced by the scripts of servers, like postgres.sh: what real servers for tests have in common. The script defines `up FOLDER` (start, wait
# until ready, print the URL), `halt FOLDER` (stop, keep the data) and `resume FOLDER` (start again, same URL).
#
#   start      starts a server in the background and prints its URL; `stop` ends it and removes its data
#   run        a server of one's own for as long as standard input is open, which is how a test that is killed leaves none
#              behind. The first line printed is the URL. The input's lines `halt` and `resume` stop it and start it again,
#              each answered by a line.

# FOLDER of the one server that `start` and `stop` are about.
kept() { # NAME
    echo "${TMPDIR:-/tmp}/voiceassistant-$1-$(id -u)"
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Starts it on a free port, by `resume`. Somebody else may take the port between the question and the start.
on_free_port() { # FOLDER
    for _ in 1 2 3 4 5; do
        free_port >"$1/port"
        ! resume "$1" || return 0
    done
    tail -n 30 "$1/server.log" >&2
    return 1
}

# Waits until the URL answers; fails at once when the process, whose id is in FOLDER/pid, has ended.
answers() { # FOLDER SECONDS URL
    for _ in $(seq "$2"0); do
        kill -0 "$(cat "$1/pid")" 2>/dev/null || return 1
        ! curl -s -f -o /dev/null "$3" || return 0
        sleep 0.1
    done
    return 1
}

# The `halt` of a server that keeps nothing, so that there is nothing to end in order.
kill_at_once() { # FOLDER
    local pid
    pid=$(cat "$1/pid" 2>/dev/null) || return 0
    rm -f "$1/pid"
    # Or bash tells of its death.
    disown "$pid" 2>/dev/null || true
    kill -9 "$pid" 2>/dev/null || return 0
    while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
}

serve() { # NAME COMMAND
    local folder line
    case "$2" in
    start)
        folder=$(kept "$1")
        # The folder is made by us or not at all: another user's is not to be trusted.
        mkdir -m 711 "$folder" 2>/dev/null || {
            echo "$1: one is running already, see $folder; end it with: $0 stop" >&2
            exit 1
        }
        up "$folder" || { remove "$folder"; exit 1; }
        ;;
    stop)
        folder=$(kept "$1")
        [ -d "$folder" ] || { echo "$1: none is running" >&2; exit 0; }
        remove "$folder"
        ;;
    run)
        folder=$(mktemp -d "${TMPDIR:-/tmp}/voiceassistant-$1-XXXXXX")
        chmod 711 "$folder"
        # shellcheck disable=SC2064 # the folder of now
        trap "remove '$folder'" EXIT
        trap 'exit 1' INT TERM HUP
        up "$folder"
        while read -r line; do
            case "$line" in
            halt) halt "$folder" && echo halted ;;
            resume) resume "$folder" && echo resumed ;;
            esac
        done
        ;;
    *)
        echo "usage: $0 start|stop|run" >&2
        exit 2
        ;;
    esac
}

remove() { # FOLDER
    halt "$1" || true
    rm -rf "$1"
}
