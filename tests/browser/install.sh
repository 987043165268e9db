#!/usr/bin/env bash
# Install the browser that tests/reports/test_browser.py opens pages in, where that is possible; the test skips where it is
# not, so this never fails.
present() { command -v chromium || command -v chromium-browser || command -v google-chrome; }
present >/dev/null && exit 0

skipped() {
	echo "no browser to test with: $1; by hand: apt-get install chromium" >&2
	exit 0
}
command -v apt-get >/dev/null || skipped "there is no apt-get"
[ "$(id -u)" = 0 ] || skipped "installing packages needs root"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
apt=(timeout 240 apt-get --quiet --quiet --yes -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o DPkg::Lock::Timeout=60)
fetch() { "${apt[@]}" install --no-install-recommends chromium; }
{ fetch || { "${apt[@]}" update && fetch; }; } >"$log" 2>&1 && present >/dev/null && exit 0
skipped "$(grep -m1 '^E: ' "$log" || tail -n 1 "$log" | grep . || echo "apt-get took too long")"
