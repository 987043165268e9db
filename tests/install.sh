#!/usr/bin/env bash
# Install what some tests need beside Python, where that is possible: those tests skip where it is not, so this never fails.
PATH=$PATH:/usr/sbin:/sbin
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt=(timeout 240 apt-get --quiet --quiet --yes -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o DPkg::Lock::Timeout=60)

present() { for command in "$@"; do command -v "$command" >/dev/null || return 1; done; }
fetch() { "${apt[@]}" install --no-install-recommends "$@"; }
skipped() { echo "no $1 to test with: $3; by hand: apt-get install $2" >&2; }

# wanted <what> <its packages> <its commands>
wanted() {
	present $3 && return
	command -v apt-get >/dev/null || { skipped "$1" "$2" "there is no apt-get"; return; }
	[ "$(id -u)" = 0 ] || { skipped "$1" "$2" "installing packages needs root"; return; }
	{ fetch $2 || { "${apt[@]}" update && fetch $2; }; } >"$log" 2>&1 && present $3 && return
	skipped "$1" "$2" "$(grep -m1 '^E: ' "$log" || tail -n 1 "$log" | grep . || echo "apt-get took too long")"
}

wanted SLURM "slurm-wlm munge" "slurmctld slurmd sbatch munged"
wanted browser chromium chromium
