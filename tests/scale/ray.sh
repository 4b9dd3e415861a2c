#!/usr/bin/env bash
# Three raylets on this machine fill one cache in object storage; one of them is killed twice in mid-shard, and storage is behind a network
# that delays and cuts. The cache has to be, byte for byte, that of one process. By hand: CI has no Ray.
#
#   tests/scale/ray.sh PYTHON MODEL CORPUS        a Python with ray and the wheel in it; flags of precompute may follow
set -euo pipefail
python=$1 model=$2 corpus=$3
shift 3
cd "$(dirname "$0")/../.."
bin=$(dirname "$python")
work=$(mktemp -d)
port=$((20000 + RANDOM % 10000))
cleanup() {
  "$bin/ray" stop --force > /dev/null 2>&1 || true
  kill $(jobs -p) 2> /dev/null || true
  wait
  rm -rf "$work"
}
trap cleanup EXIT
flags=(--model "$model" --seq-len 256 "$@")

cargo build --quiet --locked --release --example storage -p distill-tests
target/release/examples/storage "$work/storage" "127.0.0.1:$port" &
python3 tests/scale/proxy.py $((port + 1)) "127.0.0.1:$port" --delay 0.02 --cut 0.005 > "$work/proxy.log" &
export AWS_ENDPOINT_URL=http://127.0.0.1:$((port + 1)) AWS_ACCESS_KEY_ID=the-key-of-a-test AWS_SECRET_ACCESS_KEY=the-secret-of-a-test AWS_REGION=us-east-1
export OT_DISTILL_OBJECTS=$work/objects RAY_DISABLE_IMPORT_WARNING=1
sleep 1
mkdir -p "$work/storage/bucket/corpus"
cp "$corpus" "$work/storage/bucket/corpus/"

"$bin/ray" start --head --port=$((port + 2)) --num-cpus=1 --num-gpus=0 --include-dashboard=false --disable-usage-stats > "$work/head.log"
for node in 1 2; do
  "$bin/ray" start --address="127.0.0.1:$((port + 2))" --num-cpus=1 --num-gpus=0 > "$work/node-$node.log"
done
started=$SECONDS
"$python" -m ot_distill.ray precompute --shards 8 --gpus 0 --address "127.0.0.1:$((port + 2))" \
  --corpus s3://bucket/corpus --out s3://bucket/cache --threads 1 "${flags[@]}" &
run=$!
# The last raylet that was started, and after it the one before: each with its worker and the program under it, in mid-shard.
for killed in 1 2; do
  at_work=0
  # Three seconds into a shard: a worker that has just ended is no loss.
  until ((at_work >= 30)); do
    raylet=$(pgrep -f 'raylet/raylet ' | tail -n 1)
    worker=$(pgrep -P "$raylet" -f 'ray::compute' | head -n 1) || true
    if [[ -n $worker ]] && pgrep -P "$worker" -f 'precompute --shard' > /dev/null; then
      at_work=$((at_work + 1))
    else
      at_work=0
    fi
    sleep 0.1
  done
  echo "killing raylet $raylet with worker $worker, the ${killed}. time"
  kill -9 "$raylet" "$worker"
  sleep 2
  "$bin/ray" start --address="127.0.0.1:$((port + 2))" --num-cpus=1 --num-gpus=0 > "$work/again-$killed.log"
done
wait $run
echo "ray: $((SECONDS - started)) s; $(tail -n 1 "$work/proxy.log")"
"$bin/teacher-server" verify s3://bucket/cache

"$bin/teacher-server" precompute --corpus "$corpus" --out "$work/one" --threads 1 "${flags[@]}" 2> /dev/null
for name in header segments vocabulary shards; do
  diff -r "$work/one/$name" "$work/storage/bucket/cache/$name"
done
echo "byte for byte the cache of one process: $(find "$work/one/shards" -type f | wc -l) shards"
