#!/usr/bin/env bash
# Measures this project on a machine with an NVIDIA card that may have nothing but a driver, CUDA's libraries and Python.
#
#   ./gpu-check.sh pack [FILE]                      here: builds with CUDA and packs what the other machine needs, below 64 MiB
#   ./gpu-check.sh run a|b|all DIR [--limit-s N]
#                                                   there, unpacked: runs stages; done pieces are skipped, so the same command goes on
#   ./gpu-check.sh table RESULTS.json...            Markdown tables of what was measured
#   ./gpu-check.sh rehearse [DIR]                   here: every stage in tiny shapes on the CPU, or on the card in software where
#                                                   tests/card/build.sh made one and its env.sh was sourced; tests these scripts, measures nothing
#
# a  every kernel and a whole student's gradients against the CPU, the sanitizer, microseconds of every part, transport plans, the matrix product's ceiling
# b  7B and 1.5B with random weights in their real shapes beside a ballast that leaves 24 GiB free: teacher, student, both, the same in PyTorch, turns
#    (PyTorch needs torch and transformers; GPU_CHECK_PYTHON names an interpreter that has them)
#
# Both models take 20 GB of memory (/dev/shm), or of disk in DIR. docs/gpu.md says what the figures mean.
set -euo pipefail
cd "$(dirname "$0")"

archive_bytes_max=$((64 << 20))
usage() { sed -n '2,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//'; }
die() { echo "gpu-check.sh: $*" >&2; exit 1; }

# Programs, the example and the kernels' tests into $1, stripped; the rest of the arguments go to cargo. One command, so that all share what they stand on.
collect() {
  local to=$1
  shift
  mkdir -p "$to"
  cargo build --release --locked -p distill-kernels -p distill-model -p student-trainer -p teacher-server --bins --tests --example gpu_probe \
    --message-format json-render-diagnostics "$@" |
    python3 gpu-check/executables.py |
    while read -r name path; do strip -o "$to/$name" "$path"; done
}

pack() {
  local out=${1:-gpu-check.tar.xz} work
  work=$(mktemp -d)
  # shellcheck disable=SC2064 # the directory of now, not of then
  trap "rm -rf '$work'" EXIT
  local root=$work/gpu-check
  mkdir -p "$root/tests/baselines"
  collect "$root/bin" --features teacher-server/cuda,student-trainer/cuda
  cp -r gpu-check.sh gpu-check "$root/"
  cp tests/baselines/{torch_step,common,ot}.py "$root/tests/baselines/"
  find "$root" -name __pycache__ -prune -exec rm -rf {} +
  # The programs have most of their code in common: a dictionary that holds several of them makes a third of it.
  tar -C "$work" --owner=0 --group=0 -c gpu-check | xz -T1 --lzma2=preset=6,dict=192MiB > "$out"
  local bytes
  bytes=$(stat -c %s "$out")
  ((bytes < archive_bytes_max)) || die "$out has $bytes bytes, above $archive_bytes_max: build for one architecture (CUDA_COMPUTE_CAP)"
  echo "$out: $((bytes >> 10)) KiB. There: tar xf $(basename "$out") && gpu-check/gpu-check.sh run all gpu-check/work"
}

rehearse() {
  local dir=${1:-}
  if [[ -z $dir ]]; then
    dir=$(mktemp -d)
    # shellcheck disable=SC2064 # the directory of now, not of then
    trap "rm -rf '$dir'" EXIT
  fi
  if [[ -z ${GPU_CHECK_BIN:-} ]]; then
    GPU_CHECK_BIN=$dir/bin
    # On the card in software, whose env.sh was sourced, the CUDA build; else that for the CPU.
    collect "$GPU_CHECK_BIN" ${CARD_HOME:+--features teacher-server/cuda,student-trainer/cuda}
  fi
  local status=0
  python3 gpu-check/check.py run all "$dir" --rehearse --limit-s 3600 --bin "$GPU_CHECK_BIN" || status=$?
  python3 gpu-check/table.py "$dir/results.json"
  return $status
}

case ${1:-} in
  pack) shift; pack "$@" ;;
  run) shift; (($# >= 2)) || die "run needs a stage and a directory"; exec python3 gpu-check/check.py run "$@" ;;
  table) shift; (($#)) || die "table needs results.json"; exec python3 gpu-check/table.py "$@" ;;
  rehearse | --rehearse) shift; rehearse "$@" ;;
  -h | --help) usage ;;
  *) usage >&2; exit 2 ;;
esac
