#!/usr/bin/env bash
# Two Slurm nodes on this machine fill one cache in object storage by deploy/slurm.sbatch; a task is requeued in mid-work. The cache has to be,
# byte for byte, that of one process. By hand: it needs Debian's slurm-wlm, and the root user.
#
#   tests/scale/slurm.sh BIN MODEL CORPUS      the directory with teacher-server; flags of precompute may follow
set -euo pipefail
bin=$(realpath "$1") model=$(realpath "$2") corpus=$(realpath "$3")
shift 3
cd "$(dirname "$0")/../.."
. tests/scale/work.sh
flags=(--seq-len 256 --threads 1 "$@")
cat > "$work/slurm.conf" <<S
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort=$((port + 1))
SlurmUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool-%n
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MinJobAge=3600
NodeName=n1 NodeHostname=localhost Port=$((port + 2)) CPUs=1
NodeName=n2 NodeHostname=localhost Port=$((port + 3)) CPUs=1
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
S
mkdir "$work/state"
export SLURM_CONF=$work/slurm.conf
cargo build --quiet --locked --release --example storage -p distill-tests
target/release/examples/storage "$work/storage" "127.0.0.1:$port" &
mkdir -p "$work/storage/bucket"
slurmctld -D > "$work/slurmctld.log" 2>&1 &
for node in n1 n2; do slurmd -D -N "$node" > "$work/$node.log" 2>&1 & done
until [[ $(sinfo --noheader --responding --states=idle --format=%D 2> /dev/null) == 2 ]]; do sleep 0.2; done

export AWS_ENDPOINT_URL=http://127.0.0.1:$port AWS_ACCESS_KEY_ID=the-key-of-a-test AWS_SECRET_ACCESS_KEY=the-secret-of-a-test AWS_REGION=us-east-1
export OT_DISTILL_OBJECTS=$work/objects PATH=$bin:$PATH MODEL=$model CORPUS=$corpus OUT=s3://bucket/cache
job=$(sbatch --parsable --array=0-3 --gpus=0 --cpus-per-task=1 --output="$work/task-%a.log" deploy/slurm.sbatch "${flags[@]}")
until grep -q 'tokens/s' "$work/task-0.log" 2> /dev/null; do sleep 0.1; done
sleep 2
scontrol requeue "${job}_0"
echo "task 0 was requeued after: $(grep 'tokens/s' "$work/task-0.log" | tail -n 1)"
until [[ -z $(squeue --noheader --jobs="$job" 2> /dev/null) ]]; do sleep 0.5; done
for task in 0 1 2 3; do
  shown=$(scontrol --oneliner show job "${job}_$task")
  echo "task $task: $(grep -oE '(JobState|Restarts|ExitCode|NodeList)=[^ ]*' <<< "$shown" | tr '\n' ' ')"
  [[ $shown == *JobState=COMPLETED* ]] || { cat "$work/task-$task.log" >&2; exit 1; }
done
teacher-server verify "$OUT"

teacher-server precompute --model "$model" --corpus "$corpus" --out "$work/one" "${flags[@]}" 2> /dev/null
for name in header segments vocabulary shards; do
  diff -r "$work/one/$name" "$work/storage/bucket/cache/$name"
done
echo "byte for byte the cache of one process: $(find "$work/one/shards" -type f | wc -l) shards"
