#!/usr/bin/env bash
# Builds the card in software and the CUDA programs against it, and runs everything that is tested on it.
#   tests/card/run.sh [FILTER]      only the tests of tests/tests/card whose names hold FILTER
#   tests/card/run.sh --mpi         builds them with the feature mpi as well (tests/mpi.sh: what it takes), and checks it, since they are here
set -euo pipefail
cd "$(dirname "$0")/../.."
card=$PWD/target/card
tests/card/build.sh "$card"
source "$card/env.sh"
# All packages, as in the other tests: dependencies that have nothing to do with CUDA are not compiled again.
features=distill-tests/card
with_mpi=false
if [[ ${1:-} == --mpi ]]; then
  with_mpi=true
  features+=,student-trainer/mpi
  shift
fi
select=(--locked --workspace --features "$features")
CARD_DIR=$(mktemp -d)
export CARD_DIR
trap 'rm -rf "$CARD_DIR"' EXIT
# What programs keep of compiled kernels: nothing of before, and nothing for later.
export XDG_CACHE_HOME=$CARD_DIR/compiled
if [[ $# -gt 0 ]]; then
  cargo test "${select[@]}" --test card -- --nocapture "$@"
  exit
fi
built=$(
  {
    cargo test "${select[@]}" --lib --test card --no-run --message-format json-render-diagnostics
    cargo build "${select[@]}" --example gpu_probe --message-format json-render-diagnostics
  } | python3 gpu-check/executables.py
)
mkdir "$CARD_DIR/bin"
while read -r name path; do ln -sf "$path" "$CARD_DIR/bin/$name"; done <<< "$built"
# Every kernel's tests, with the card in the emulator's place; the list is gpu-check's.
python3 gpu-check/kernel_tests.py --bin "$CARD_DIR/bin" --logs "$CARD_DIR/logs"
for part in kernels transport gradients; do
  "$CARD_DIR/bin/gpu_probe" "$part" --tiny --device cuda
done
if [[ -s $CARD_DIR/refusals ]]; then
  cat "$CARD_DIR/refusals" >&2
  exit 1
fi
# In the reference pair's shapes both programs allocate what `plan` computes, and a step is as few launches as it is said to be.
for name in teacher-server student-trainer; do
  ln -sf "$PWD/target/debug/$name-under-test" "$CARD_DIR/bin/$name"
done
python3 tests/card/counts.py --out "$CARD_DIR/counts" --bin "$CARD_DIR/bin" --lengths 512
cargo test "${select[@]}" --test card
if $with_mpi; then
  python3 tests/mpi.py --bin "$CARD_DIR/bin"
fi
