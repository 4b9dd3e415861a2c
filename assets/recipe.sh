#!/usr/bin/env bash
# Makes the embedded models anew: problems, tokenizer, teacher and student, each from its seed; about 15 minutes on two cores.
#
#   assets/recipe.sh WORK        writes WORK/{corpus,tokenizer,readings,teacher,student} and prints what the models can do
#
# Copy WORK/teacher/model to assets/teacher and WORK/student/model to assets/student to embed them.
set -euo pipefail
work=$(mkdir -p "${1:?name a directory to work in}" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
cargo build --release --locked -p student-trainer -p quickstart
bin=$(cargo metadata --format-version 1 --no-deps --locked --offline | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release

"$bin/quickstart" corpus --out "$work/corpus" --train 100000 --held-out 400 --seed 1
"$bin/quickstart" tokenizer --corpus "$work/corpus/train.jsonl" --out "$work/tokenizer"
"$bin/quickstart" readings --out "$work/readings"

pretrain() { # NAME EPOCHS LEARNING_RATE
  RAYON_NUM_THREADS=1 "$bin/student-trainer" pretrain --model-config "assets/$1/config.json" --tokenizer "$work/tokenizer" \
    --data "$work/readings/$1-reads.jsonl" --out "$work/$1" --epochs "$2" --lr "$3" --batch-size 32 --seq-len 160 --save-dtype bf16
}
pretrain teacher 2 3e-3 &
pretrain student 3 4e-3 &
wait -n
wait -n

for name in teacher student; do
  for language in english chinese; do
    echo "$name, held-out problems, $language:"
    "$bin/student-trainer" eval --student "$work/$name/model" --quantize none --data "$work/readings/held-out-$language.jsonl" \
      --seq-len 160 --exact-match
  done
done
