#!/usr/bin/env bash
# Builds the card in software and the CUDA programs against it, and runs everything that is tested on it.
#   tests/card/run.sh [FILTER]      only the tests of tests/tests/card whose names hold FILTER
set -euo pipefail
cd "$(dirname "$0")/../.."
card=$PWD/target/card
tests/card/build.sh "$card"
source "$card/env.sh"
# All packages, as in the other tests: dependencies that have nothing to do with CUDA are not compiled again.
select=(--locked --workspace --features distill-tests/card)
if [[ $# -gt 0 ]]; then
  exec cargo test "${select[@]}" --test card -- --nocapture "$@"
fi
built=$(
  {
    cargo test "${select[@]}" --lib --test card --no-run --message-format json-render-diagnostics
    cargo build "${select[@]}" --example gpu_probe --message-format json-render-diagnostics
  } | python3 gpu-check/executables.py
)
run() { "$(awk -v name="$1" '$1 == name { print $2 }' <<< "$built")" "${@:2}"; }
CARD_DIR=$(mktemp -d)
export CARD_DIR
trap 'rm -rf "$CARD_DIR"' EXIT
# Every kernel's tests, with the card in the emulator's place; the list is gpu-check's. They read scratch memory back with the rest, so the card is not to
# mind what nobody wrote; kernels that do are found by the same tests in the emulator.
while read -r name filters; do
  # shellcheck disable=SC2086
  OT_DISTILL_KERNELS=cuda CARD_SHADOW=0 run "$name" $filters
done < gpu-check/tests.txt
for part in kernels transport gradients; do
  run gpu_probe "$part" --tiny --device cuda
done
if [[ -s $CARD_DIR/refusals ]]; then
  cat "$CARD_DIR/refusals" >&2
  exit 1
fi
# What both programs allocate in the reference pair's shapes is what `plan` computes.
mkdir "$CARD_DIR/bin"
for name in teacher-server student-trainer; do
  ln -s "$PWD/target/debug/$name-under-test" "$CARD_DIR/bin/$name"
done
python3 tests/card/peaks.py --out "$CARD_DIR/peaks" --bin "$CARD_DIR/bin" --lengths 512 --modes resident --transport off
cargo test "${select[@]}" --test card
