#!/usr/bin/env bash
# Packs the programs that `cargo test --workspace` left into a wheel, installs it into a fresh environment, and checks what a user gets.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/programs"
for name in teacher-server student-trainer; do
  ln -s "$PWD/target/debug/$name-under-test" "$work/programs/$name"
done
rm -rf target/wheels/dev target/wheels/cuda
python/build-wheel.sh --programs "$work/programs"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check target/wheels/dev/ot_distill-*.whl
# Not from here, where the sources would be imported.
repository=$PWD
cd "$work"
venv/bin/python "$repository/python/tests/check.py" "$repository"
cd "$repository"
# Of the wheel for CUDA only that it is packed.
python/build-wheel.sh --cuda --programs "$work/programs"
python3 -m zipfile -l target/wheels/cuda/ot_distill-*.whl | grep -E '/scripts/(teacher-server|student-trainer) ' | wc -l | grep -qx 2
