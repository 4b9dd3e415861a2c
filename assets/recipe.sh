#!/usr/bin/env bash
# Makes the embedded models anew: problems, tokenizer, teacher and student, each from its seed; about 70 minutes on two cores.
#
#   assets/recipe.sh WORK        writes WORK/{corpus,tokenizer,teacher,student} and prints what the models can do
#
# Copy WORK/teacher/model to assets/teacher and WORK/student/model to assets/student to embed them.
set -euo pipefail
work=$(mkdir -p "${1:?name a directory to work in}" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
cargo build --release --locked -p student-trainer -p quickstart
bin=$(cargo metadata --format-version 1 --no-deps --locked --offline | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release

"$bin/quickstart" corpus --out "$work/corpus" --train 250000 --held-out 400 --seed 1
head -n 100000 "$work/corpus/train.jsonl" > "$work/tokenizer-sample.jsonl"
"$bin/quickstart" tokenizer --corpus "$work/tokenizer-sample.jsonl" --out "$work/tokenizer"

pretrain() { # NAME STEPS LEARNING_RATE
  "$bin/student-trainer" pretrain --model-config "assets/$1/config.json" --tokenizer "$work/tokenizer" \
    --data "$work/corpus/train.jsonl" --out "$work/$1" --steps "$2" --lr "$3" --save-dtype bf16
}
pretrain teacher 9000 2e-3 &
pretrain student 4000 3e-3 &
wait -n
wait -n

accuracy() { # NAME QUANTIZE
  for split in numbers templates; do
    echo "$1, unseen $split:"
    "$bin/student-trainer" eval --student "$work/$1/model" --quantize "$2" --data "$work/corpus/heldout-$split.jsonl" \
      --seq-len 160 --exact-match
  done
}
accuracy teacher none
accuracy student nf4
