#!/usr/bin/env bash
# Builds the card in software and the CUDA programs against it, and runs everything that is tested on it.
#   tests/card/run.sh [FILTER]      only the tests of tests/tests/card whose names hold FILTER
set -euo pipefail
cd "$(dirname "$0")/../.."
card=${CARGO_TARGET_DIR:-target}/card
tests/card/build.sh "$card"
source "$card/env.sh"
features=(--locked --features distill-tests/card)
if [[ $# -gt 0 ]]; then
  exec cargo test "${features[@]}" -p distill-tests --test card -- --nocapture "$@"
fi
# Every kernel's tests, with the card in the emulator's place; the lists are those of gpu-check.
export OT_DISTILL_KERNELS=cuda CARD_DIR=$(mktemp -d)
trap 'rm -rf "$CARD_DIR"' EXIT
while read -r package filters; do
  # shellcheck disable=SC2086
  cargo test "${features[@]}" -p "${package//_/-}" -p distill-tests --lib -- $filters
done < gpu-check/tests.txt
cargo run "${features[@]}" -p student-trainer -p distill-tests --example gpu_probe -- gradients --tiny --device cuda
cargo test "${features[@]}" -p distill-tests --test card
[[ ! -s $CARD_DIR/refusals ]] || { cat "$CARD_DIR/refusals" >&2; exit 1; }
