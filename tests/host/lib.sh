# Shared by the scripts of this folder: where things are kept, and how they speak.
# Meant to be sourced by bash with `set -euo pipefail`.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ravelin
mkdir -p "$cache"

say() { printf '\033[2m[%s]\033[0m %s\n' "${who:-host}" "$*" >&2; }
die() { say "error: $*"; exit 1; }

# key FILE...: a short content key of the named files (folders are walked) and of stdin.
key() {
    { realpath "$@" | tr "\n" "\0" | xargs -0 -I{} find {} -name __pycache__ -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 cat; cat; } | sha256sum | cut -c1-16
}

# once NAME: holds a lock on NAME until the script ends, so that one of several builders makes a thing and the others wait.
once() {
    exec 9> "$cache/$1.lock"
    flock -n 9 || { say "waiting for another build of $1"; flock 9; }
}

# quiet NAME COMMAND...: runs the command with its output in a log; shows the log's end when it fails.
quiet() {
    local log=$cache/$1.log; shift
    "$@" > "$log" 2>&1 < /dev/null || { tail -n 40 "$log" >&2; die "'$*' failed (whole log: $log)"; }
}
