# What the scripts share; sourced by them from the project's directory.

# rustup writes its PATH line into files that a non-interactive shell does not read.
if ! command -v cargo >/dev/null && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
    PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
fi
export PATH

say() { printf '%s\n' "$*"; }

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# Starts the calling script again under scripts/supervise, which ends and reports whatever it would leave behind.
supervised() {
    if [ -z "${TINTYPE_SUPERVISED:-}" ]; then
        command -v python3 >/dev/null || scripts/install-needs
        exec python3 scripts/supervise "$0" "$@"
    fi
    # Only this script: one that it calls looks after itself.
    unset TINTYPE_SUPERVISED
}

# Runs a command under a heading that says how long it took.
step() {
    local name=$1 began=$SECONDS
    shift
    say "== $name"
    if ! "$@"; then
        fail "$name: did not pass"
    fi
    say "== $name: $((SECONDS - began)) s"
}

# Where tests find what install-needs brought.
tool_environment() {
    export TINTYPE_REDIS_70=${TINTYPE_REDIS_70:-$(command -v redis-server)}
    export TINTYPE_REDIS_62=${TINTYPE_REDIS_62:-$PWD/target/tools/redis-server-6.2}
    export TINTYPE_PYTHON=${TINTYPE_PYTHON:-$PWD/target/tools/venv/bin/python}
    export TINTYPE_TOOLS=${TINTYPE_TOOLS:-$PWD/target/tools}
    export TINTYPE_EFFORT=${TINTYPE_EFFORT:-small}
}

# So many different ports that nobody listens on now. Somebody may take one before it is used: who starts a server looks.
free_ports() {
    python3 -c '
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for one in sockets:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in sockets))' "$1"
}

# Waits until a command succeeds: `wait_for SECONDS WHAT COMMAND...`.
wait_for() {
    local until=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $until ] || fail "$what: not in time"
        sleep 0.05
    done
}
