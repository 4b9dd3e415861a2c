#!/usr/bin/env bash
# Trainer and teacher with a bad network between them, which is away for 30 seconds in mid-run: late pieces, connections cut in the middle.
# The adapter has to be, byte for byte, that of a run without it. By hand: it takes two minutes of waiting.
#
#   tests/scale/network.sh BIN      the directory with teacher-server and student-trainer
set -euo pipefail
bin=$(realpath "$1")
cd "$(dirname "$0")/../.."
. tests/scale/work.sh
"$bin/teacher-server" serve --model assets/teacher --corpus tests/fixtures/corpus/text.jsonl --bind "127.0.0.1:$port" > "$work/teacher.log" 2>&1 &
until grep -q 'serving on' "$work/teacher.log"; do sleep 0.1; done
train() {
  "$bin/student-trainer" train --student assets/student --teacher "http://127.0.0.1:$1" --out "$work/$2" --steps 600 --prefetch-frames 4 --seed 7 "${@:3}" 2> "$work/$2.log"
}
train "$port" near
python3 tests/scale/proxy.py $((port + 1)) "127.0.0.1:$port" --delay 0.05 --cut 0.01 --away 5:30 > "$work/proxy.log" &
sleep 1
started=$SECONDS
train $((port + 1)) far
echo "far: $((SECONDS - started)) s; $(tail -n 1 "$work/proxy.log"); what the trainer said of it:"
grep -iE 'connect|teacher|again' "$work/far.log" | sort | uniq -c | sort -rn | head -n 8
cmp "$work/near/adapter/adapter_model.safetensors" "$work/far/adapter/adapter_model.safetensors"
echo 'byte for byte the adapter of a near teacher'
