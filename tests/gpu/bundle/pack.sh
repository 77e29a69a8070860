#!/usr/bin/env bash
# Packs wheels and further files for a GPU machine without a network: parts of one archive, their sums, install.sh.
#
#     bash pack.sh OUTPUT PART_SIZE PYTHON WHEELS [PATH ...]      PART_SIZE as 60M; PYTHON as 3.12; WHEELS is a folder
#
# The archive holds wheels/ and files/, sorted by name, without times and owners: the same files give the same parts.
set -euo pipefail

fail() { printf 'llmc: error: %s\n' "$*" >&2; exit 1; }

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
output=$1 size=$2 python=$3 wheels=$4
shift 4
[[ $python =~ ^3\.[0-9]+$ ]] || fail "the version $python is none; write it as 3.12"
[[ $size =~ ^[1-9][0-9]*[KMG]?$ ]] || fail "parts of $size are no size; write it as 60M"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch/wheels" "$scratch/files"
cp "$wheels"/*.whl "$scratch/wheels/" || fail "there is no wheel in $wheels"
for path; do
    [ -e "$path" ] || fail "$path does not exist, so it cannot be taken along"
    name=$(basename "$(realpath "$path")")
    [ ! -e "$scratch/files/$name" ] || fail "two of the files to take along are called $name; rename one"
    cp -rL "$path" "$scratch/files/$name"
done
[ "$#" -gt 0 ] || rmdir "$scratch/files"

mkdir -p "$output"
other=$(cd "$output" && find . -mindepth 1 -maxdepth 1 ! -name 'bundle.part*' ! -name SHA256SUMS ! -name install.sh \
    -printf '%f\n' -quit)
[ -z "$other" ] || fail "$output holds $other, which is no part of a bundle; give a folder of its own"
rm -f "$output"/bundle.part* "$output/SHA256SUMS" "$output/install.sh"
(cd "$scratch" && find . -type f ! -path '*/__pycache__/*' -printf '%P\0' | LC_ALL=C sort -z) |
    tar --create --format=gnu --directory="$scratch" --mtime=@0 --owner=:0 --group=:0 --numeric-owner \
        --mode='u=rwX,go=rX' --null --no-recursion --files-from=- |
    split --bytes="$size" --numeric-suffixes --suffix-length=3 - "$output/bundle.part"
sed "s/@PYTHON@/$python/g" "$here/install.sh" >"$output/install.sh"
# Last: a folder with sums has everything that they name.
(cd "$output" && sha256sum bundle.part* >"$scratch/sums") && mv "$scratch/sums" "$output/SHA256SUMS"
echo "$output: $(wc -l <"$output/SHA256SUMS") parts, $(du -ch "$output"/bundle.part* | tail -n 1 | cut -f 1)"
echo "copy the folder to the GPU machine and run: sh install.sh [PREFIX]"
