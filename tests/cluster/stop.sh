#!/usr/bin/env bash
# Stop the cluster that start.sh has started in a folder, and its jobs; no other process is touched.
#   tests/cluster/stop.sh <folder>
set -u
root=$(cd "$1" && pwd) || exit 1

named() { # <process id> <pattern>: does such a program run under this number? one that has only not been waited for does not
	# shellcheck disable=SC2053
	[[ $(cat "/proc/$1/comm" 2>/dev/null) == $2 ]] && grep -qs '^State:.[^Z]' "/proc/$1/status"
}
daemons() {
	local file pid
	for file in "$root"/pid/*; do
		pid=$(cat "$file" 2>/dev/null)
		if named "$pid" 'slurm*' || named "$pid" munged; then echo "$pid"; fi
	done
}
tasks() { # what the cluster's jobs have started carries the cluster's configuration and the job's number in its environment
	local file
	for file in $(grep -lzsxF "SLURM_CONF=$root/slurm.conf" /proc/[0-9]*/environ); do
		grep -qzs '^SLURM_JOB_ID=' "$file" && echo "$file" | cut -d/ -f3
	done
}
managers() { # of those tasks; their own environment is empty
	local pid parent
	for pid in $(tasks); do
		parent=$(awk '/^PPid/ { print $2 }' "/proc/$pid/status" 2>/dev/null)
		if named "${parent:-0}" slurmstepd; then echo "$parent"; fi
	done | sort -u
}
end() { # <signal> <process id>...
	local pid
	for pid in "${@:2}"; do kill "-$1" "$pid" 2>/dev/null; done
}
alive() { # <process id>...: is any of them?
	local pid
	for pid in "$@"; do named "$pid" '*' && return 0; done
	return 1
}
gone() { # <process id>...: within ten seconds
	for _ in $(seq 100); do
		alive "$@" || return 0
		sleep 0.1
	done
	return 1
}

managers=$(managers)
[ -s "$root/pid/slurmctld" ] && SLURM_CONF=$root/slurm.conf timeout 5 scancel --quiet --user="$(id -un)"
end KILL $(tasks)
gone $managers || end KILL $managers
daemons=$(daemons)
end KILL $daemons # asked politely, they would wait for each other; nothing of theirs is to be kept
end KILL $(tasks) # of jobs that were about to begin
gone $daemons $managers $(tasks) && exit 0
echo "still running: $(daemons) $(tasks)" >&2
exit 1
