#!/bin/sh
# Installs a bundle that `make gpu-bundle` made. It needs Python @PYTHON@ with pip, tar and sha256sum; no network.
#
#     sh install.sh [PREFIX]         PREFIX: $HOME/llmc-gpu unless given
#     PYTHON=/opt/x/bin/python3 sh install.sh
#
# All parts lie in this script's folder. stdout is what a shell has to run afterwards, and nothing else:
#
#     eval "$(sh install.sh)"
set -eu

say() { printf 'llmc: %s\n' "$*" >&2; }
fail() { printf 'llmc: error: %s\n' "$*" >&2; exit 1; }

folder=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
prefix=${1:-$HOME/llmc-gpu}
python=${PYTHON:-python3}
sums=$folder/SHA256SUMS

case $prefix in
    *\'*) fail "the prefix $prefix has a quote in its name; give another" ;;
    /*) ;;
    *) prefix=$PWD/$prefix ;;
esac
for tool in tar sha256sum; do
    command -v "$tool" >/dev/null 2>&1 || fail "$tool is not installed"
done
"$python" -c '' 2>/dev/null || fail "$python does not run; name a Python @PYTHON@ by PYTHON=/path/to/python3"
found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$found" = "@PYTHON@" ] ||
    fail "$python is Python $found, and the wheels are for @PYTHON@; name one by PYTHON=/path/to/python3"
"$python" -m pip --version >/dev/null 2>&1 ||
    fail "$python has no pip; run $python -m ensurepip, or name another Python by PYTHON=/path/to/python3"

[ -f "$sums" ] || fail "SHA256SUMS is not in $folder; copy the whole bundle into one folder"
while read -r sum name; do
    [ -f "$folder/$name" ] || fail "$name is missing in $folder; copy all parts into one folder"
done <"$sums"
while read -r sum name; do
    actual=$(sha256sum <"$folder/$name")
    [ "${actual%% *}" = "$sum" ] || fail "$name is damaged: its SHA-256 is not the one in SHA256SUMS; copy it again"
done <"$sums"
say "all parts are there and whole"

if [ -e "$prefix" ] && [ ! -f "$prefix/.llmc-gpu-bundle" ] && [ -n "$(ls -A "$prefix" 2>/dev/null)" ]; then
    fail "$prefix exists and was not made by this script; give another prefix: sh install.sh PREFIX"
fi
mkdir -p "$prefix" || fail "$prefix cannot be made; give another prefix: sh install.sh PREFIX"
: >"$prefix/.llmc-gpu-bundle"
rm -rf "$prefix/wheels" "$prefix/files" "$prefix/site"
while read -r sum name; do
    cat "$folder/$name"
done <"$sums" | tar -xf - -C "$prefix" || fail "the bundle cannot be unpacked into $prefix; is its disk full?"
"$python" -m pip --isolated install --disable-pip-version-check --quiet --no-index --no-deps \
    --target "$prefix/site" "$prefix"/wheels/*.whl >&2 || fail "pip did not install the wheels; its message is above"
say "installed into $prefix/site"
[ ! -d "$prefix/files" ] || say "further files are in $prefix/files"
printf "export PYTHONPATH='%s'\${PYTHONPATH:+:\$PYTHONPATH}\n" "$prefix/site"
printf "export PATH='%s':\$PATH\n" "$prefix/site/bin"
