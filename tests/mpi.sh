#!/usr/bin/env bash
# Training by several processes through MPI, with the real mpirun and the embedded models, against one process (docs/scale.md).
#
#   tests/mpi.sh                 builds both programs with the feature mpi into target/mpi, and checks them
#   tests/mpi.sh --speed         what a second rank brings instead: one rank beside two, one thread each
#
# CARGO_TARGET_DIR names another target directory. Installs nothing: Debian's packages are openmpi-bin, libopenmpi-dev and libclang-dev.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
command -v mpirun > /dev/null || missing+=(openmpi-bin)
command -v mpicc > /dev/null || missing+=(libopenmpi-dev)
# What generates the bindings looks for it as clang-sys does.
if [[ -z ${LIBCLANG_PATH:-} ]] && ! compgen -G '/usr/lib/llvm*/lib/libclang*.so*' > /dev/null \
  && ! ldconfig -p 2> /dev/null | grep -q libclang; then
  missing+=(libclang-dev)
fi
if ((${#missing[@]})); then
  echo "mpi.sh: these are missing, by the names of Debian's packages: ${missing[*]}; nothing was built or tested" >&2
  exit 1
fi

target=${CARGO_TARGET_DIR:-$PWD/target/mpi}
CARGO_TARGET_DIR=$target cargo build --locked -p teacher-server -p student-trainer --features student-trainer/mpi
exec python3 tests/mpi.py --bin "$target/debug" "$@"
