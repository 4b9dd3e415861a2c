#!/usr/bin/env bash
# Runs both programs on the test fixtures' tiny models: a teacher, three epochs of a student, and an evaluation.
set -euo pipefail
cd "$(dirname "$0")"
cargo build --release --locked -p teacher-server -p student-trainer
work=$(mktemp -d)
teacher_pid=
trap '[ -z "$teacher_pid" ] || kill "$teacher_pid" 2>/dev/null; rm -rf "$work"' EXIT
fixtures=tests/fixtures
for side in teacher:qwen2-untied student:qwen2-tied; do
  mkdir "$work/${side%%:*}"
  cp "$fixtures/models/${side#*:}"/{config.json,model.safetensors} "$fixtures"/tokenizer/*.json "$work/${side%%:*}"
done

target/release/teacher-server serve --model "$work/teacher" --corpus "$fixtures/corpus/documents.txt" --seq-len 64 \
  --bind "unix:$work/teacher.sock" &
teacher_pid=$!
target/release/student-trainer train --teacher "unix:$work/teacher.sock" --student "$work/student" --out "$work/run" \
  --epochs 3 --lr 2e-3
target/release/student-trainer eval --teacher "unix:$work/teacher.sock" --student "$work/student" \
  --adapter "$work/run/adapter" --data "$fixtures/corpus/documents.txt" --seq-len 64
