# Shared by the scripts here: what is found or installed before anything of the project runs.
# shellcheck shell=bash

tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$tree/.venv
PATH=${PATH//"$venv/bin:"/} # activated or not: what makes .venv must not be in it
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
  say "$*"
  exit 125 # as agentres itself does: never the agent's own status
}

# apt_install PACKAGE...: through apt where that can be had, after saying so.
apt_install() {
  local sudo=()
  command -v apt-get >/dev/null || die "install the equivalents of these Debian packages first: $*"
  if ((EUID != 0)); then
    command -v sudo >/dev/null || die "neither root nor sudo: ask for these Debian packages: $*"
    sudo=(sudo)
  fi
  say "missing on this host: $*; installing: ${sudo[*]:+sudo }apt-get install $*"
  { # another's apt is waited for
    "${sudo[@]}" apt-get update -q &&
      "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -o DPkg::Lock::Timeout=600 install -q --yes --no-install-recommends "$@"
  } >&2 || die "apt-get failed; install by hand: $*"
}

# $prefix and $DESTDIR as whole paths without a slash at the end, as $prefix and $destdir.
read_places() {
  [[ $prefix == /* ]] || die "--prefix $prefix: expected a whole path"
  prefix=$(realpath -ms -- "$prefix") || die "needs realpath(1) of coreutils"
  [[ $prefix != / ]] || die "--prefix /: expected a directory below that"
  destdir=${DESTDIR-}
  [[ $destdir ]] || return 0
  [[ $destdir == /* ]] || die "DESTDIR=$destdir: expected a whole path"
  destdir=$(realpath -ms -- "$destdir") || die "needs realpath(1) of coreutils"
  destdir=${destdir%/}
}

# The first Python that is new enough, in $python; empty where there is none.
find_python() {
  for python in python3 python3.13 python3.12 python3.11 ""; do
    [[ -z $python ]] && return
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return
  done
}

# ensure_venv NAME: .venv has the locked requirements/NAME.txt and the project, editable.
# An environment for the developers (dev) serves the users (runtime) too.
ensure_venv() {
  local wanted=$1 have python
  for have in "$wanted" dev; do
    if cmp -s "$tree/requirements/$have.txt" "$venv/agentres-$have.txt" &&
      "$venv/bin/python" -c 'import agentres' 2>/dev/null; then
      return
    fi
  done
  find_python
  if [[ -z $python ]]; then
    apt_install python3 python3-venv
    find_python
    [[ -n $python ]] || die "needs Python 3.11 or newer; this host has $(python3 --version)"
  fi
  "$python" -c 'import ensurepip, venv' 2>/dev/null || apt_install "$python-venv"
  say "installing requirements/$wanted.txt and agentres in .venv ($("$python" --version))"
  # The project is built with the locked backend, not with one that pip would fetch.
  if ! {
    "$python" -m venv --clear "$venv" &&
      "$venv/bin/pip" install -qq --use-pep517 --require-hashes \
        -r "$tree/requirements/$wanted.txt" &&
      "$venv/bin/pip" install -qq --no-deps --no-build-isolation --editable "$tree"
  }; then
    die "cannot make .venv"
  fi
  cp "$tree/requirements/$wanted.txt" "$venv/agentres-$wanted.txt"
}

# Why `agentres doctor` says that runs would be refused here.
refusal() {
  { agentres doctor --json 2>&1 || true; } | python3 -c '
import json, sys
text = sys.stdin.read()
try:
    findings = json.loads(text)["findings"]
    print("; ".join(found["detail"] for found in findings if found["status"] == "refused"))
except ValueError:
    print("agentres doctor:", text.strip().rpartition("\n")[2])
'
}

# can_enforce run|FILE: `agentres doctor` says that runs work here, or that this limit would hold.
can_enforce() {
  agentres doctor --json 2>/dev/null | python3 -c '
import json, sys
answer = json.load(sys.stdin)
holds = {finding["check"]: finding["status"] == "ok" for finding in answer["findings"]}
sys.exit(not {**holds, "run": answer["run"]}.get(sys.argv[1]))
' "$1" 2>/dev/null
}
