#!/usr/bin/env bash
# Start a SLURM cluster inside a folder: emulated nodes of one CPU, no services, nothing in /etc, any user, any number of
# clusters side by side. Exits with 1 and the reason when it does not come up; nothing is left running then.
#   tests/cluster/start.sh <folder> [nodes]    then  export SLURM_CONF=<folder>/slurm.conf
#   tests/cluster/stop.sh <folder>
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
nodes=${2:-4}
mkdir -p "$1"
root=$(cd "$1" && pwd)
PATH=$PATH:/usr/sbin:/sbin

failed() {
	echo "the cluster in $root does not come up: $1" >&2
	tail -n 5 "$root"/log/* >&2 2>/dev/null || true
	"$here/stop.sh" "$root" >&2
	exit 1
}
until_true() { # <seconds> <command>; not longer than all that was started runs
	local end=$((SECONDS + $1))
	while ! "${@:2}"; do
		[ $SECONDS -lt $end ] && kill -0 $(cat "$root"/pid/*) 2>/dev/null || return 1
		sleep 0.1
	done
}
daemon() { # <name> <command>: in the background, on its own, known by its process id
	setsid "${@:2}" >"$root/log/$1" 2>&1 </dev/null &
	echo $! >"$root/pid/$1"
}

[ ${#root} -le 70 ] || { echo "$root is too long a name: a socket below it has 108 characters at most" >&2 && exit 1; }
mkdir -p "$root"/{log,pid,state,munge}
rm -f "$root"/pid/*
read -r port slurmd_ports < <(python3 - "$nodes" <<-'PORTS'
	import socket, sys
	probes = [socket.socket() for _ in range(1 + int(sys.argv[1]))]
	for probe in probes:
	    probe.bind(("127.0.0.1", 0))
	print(*(probe.getsockname()[1] for probe in probes))
PORTS
)
socket=$root/munge/socket

# Lines that differ from SLURM's defaults, and why:
#   FirstJobId        ranks meet at a port made of the job's id, which must not be that of another cluster's job
#   linuxproc, none   what runs without control groups
#   MinJobAge         ended jobs stay known, as there is no accounting
#   main, high        a job on high takes the node of one on main, which is told by its user signal 15 s ahead and requeued
cat >"$root/slurm.conf" <<CONF
ClusterName=quadrat
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$socket
StateSaveLocation=$root/state
SlurmdSpoolDir=$root/spool.%n
SlurmctldPidFile=$root/state/slurmctld.pid
SlurmdPidFile=$root/state/%n.pid
ProctrackType=proctrack/linuxproc
MailProg=/bin/true
FirstJobId=$((RANDOM % 9000 + 1000))
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=3600
SlurmdTimeout=60
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
$(number=0; for one in $slurmd_ports; do
	number=$((number + 1))
	echo "NodeName=n$number NodeHostname=n$number NodeAddr=127.0.0.1 Port=$one CPUs=1 RealMemory=4000"
done)
PartitionName=main Nodes=ALL Default=YES State=UP DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE GraceTime=15
PartitionName=high Nodes=ALL State=UP DefaultTime=10 PriorityTier=10 PreemptMode=OFF
CONF
export SLURM_CONF=$root/slurm.conf

[ -s "$root/munge/key" ] || (umask 077 && head -c 1024 /dev/urandom >"$root/munge/key")
daemon munged munged --foreground --force --key-file="$root/munge/key" --socket="$socket" \
	--pid-file="$root/munge/pid" --log-file="$root/munge/log" --seed-file="$root/munge/seed"
until_true 20 test -S "$socket" || failed "munged opens no socket"

daemon slurmctld slurmctld -D -c # -c: forget what an earlier start in this folder has left
for number in $(seq "$nodes"); do
	mkdir -p "$root/spool.n$number"
	daemon "n$number" slurmd -D -N "n$number"
done
all_idle() { [ "$(timeout 10 sinfo --noheader --Node --states=idle --format=%N 2>/dev/null | sort -u | wc -l)" = "$nodes" ]; }
until_true 60 all_idle || failed "not all of $nodes nodes are idle: $(timeout 10 sinfo --noheader --Node --long 2>&1 | head -n "$nodes")"
