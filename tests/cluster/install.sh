#!/usr/bin/env bash
# Install what tests/test_slurm.py needs, where that is possible; those tests skip where it is not, so this never fails.
needed() { command -v slurmctld && command -v slurmd && command -v sbatch && command -v munged; }
PATH=$PATH:/usr/sbin:/sbin
needed >/dev/null && exit 0

skipped() {
	echo "no SLURM to test with: $1; by hand: apt-get install slurm-wlm munge" >&2
	exit 0
}
command -v apt-get >/dev/null || skipped "there is no apt-get"
[ "$(id -u)" = 0 ] || skipped "installing packages needs root"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
apt=(timeout 180 apt-get --quiet --quiet --yes -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o DPkg::Lock::Timeout=60)
fetch() { "${apt[@]}" install --no-install-recommends slurm-wlm munge; }
{ fetch || { "${apt[@]}" update && fetch; }; } >"$log" 2>&1 && needed >/dev/null && exit 0
skipped "$(grep -m1 '^E: ' "$log" || tail -n 1 "$log" | grep . || echo "apt-get took too long")"
