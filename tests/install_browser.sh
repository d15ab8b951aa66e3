#!/bin/sh
# Installs what tests/test_browser.py needs: Debian's Chromium, and axe-core into the folder given
# as the first argument (by default a cache of the user's). Prints that folder: set PROBE_AXE to it.
set -eu
folder="${1:-${XDG_CACHE_HOME:-$HOME/.cache}/entropy-probe/axe}"
version=4.14.1
if ! command -v chromium >/dev/null 2>&1; then
  as_root=""
  [ "$(id -u)" = 0 ] || as_root=sudo
  $as_root apt-get update >&2
  $as_root apt-get install -y --no-install-recommends chromium fonts-dejavu-core >&2
fi
mkdir -p "$folder"
if [ ! -f "$folder/axe.min.js" ]; then
  scratch=$(mktemp -d)
  (cd "$scratch" && npm pack --silent "axe-core@$version" >&2 && tar -xzf axe-core-*.tgz)
  cp "$scratch/package/axe.min.js" "$folder/axe.min.js"
  rm -rf "$scratch"
fi
echo "$folder"
