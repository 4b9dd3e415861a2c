#!/usr/bin/env bash
# Builds the wheel of the Python package: the extension module and both programs.
#
#   python/build-wheel.sh                 for the CPU: Linux on x86-64 with glibc 2.28 or later, into target/wheels
#   python/build-wheel.sh --cuda          by hand, with NVIDIA's compiler (docs/gpu.md: what it takes, CUDA_COMPUTE_CAP): for this machine's glibc or
#                                         later, into target/wheels/cuda; the CUDA libraries are not in it
#   python/build-wheel.sh --programs DIR  packs the programs that are in DIR with a module of the dev profile, for this machine, into target/wheels/dev:
#                                         what tests run; with --cuda into target/wheels/cuda
#
# It needs Rust, a C compiler and Python 3.9 or later; maturin and, for the CPU, zig as a linker for old systems are fetched into target/wheel-tools.
set -euo pipefail
cd "$(dirname "$0")/.."

# As in python/pyproject.toml, and the zig that it was tried with.
maturin=1.16.0 zig=0.16.0
target=x86_64-unknown-linux-gnu
names=(teacher-server student-trainer)

usage() { sed -n '2,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//'; }
refuse() { echo "build-wheel.sh: $1" >&2; exit 2; }

cuda=false programs='' out=target/wheels
while (($#)); do
  case $1 in
    --cuda) cuda=true out=target/wheels/cuda ;;
    --programs) programs=${2:?--programs needs a directory}; shift ;;
    -h | --help) usage; exit ;;
    *) refuse "$1 is not known; see --help" ;;
  esac
  shift
done

tools=target/wheel-tools
tool() {
  [[ -x $tools/bin/python ]] || python3 -m venv "$tools"
  "$tools/bin/pip" install --quiet --disable-pip-version-check "$@"
}
tool "maturin==$maturin"
PATH=$PWD/$tools/bin:$PATH

# Through maturin too: it checks which symbols of glibc a program asks for.
build_for_old_systems() {
  tool "ziglang==$zig"
  module+=(--release --zig --target "$target" --compatibility manylinux_2_28)
  for name in "${names[@]}"; do
    maturin build "${module[@]}" --strip --manifest-path "$name/Cargo.toml" --bindings bin --out target/wheels/programs
  done
  programs=target/$target/release
}

build_with_cuda() {
  cargo build --release --locked --features teacher-server/cuda,student-trainer/cuda -p teacher-server -p student-trainer
  programs=target/release
}

started=$SECONDS
module=(--locked)
if [[ -n $programs ]]; then
  module+=(--profile dev --compatibility linux)
  $cuda || out=target/wheels/dev
elif $cuda; then
  build_with_cuda
  module+=(--release --compatibility linux)
else
  build_for_old_systems
fi

scripts=target/wheel-data/scripts
rm -rf target/wheel-data
mkdir -p "$scripts"
for name in "${names[@]}"; do
  [[ -x $programs/$name ]] || refuse "there is no program $programs/$name"
  strip -o "$scripts/$name" "$programs/$name"
done
maturin build "${module[@]}" --manifest-path python/Cargo.toml --out "$out"

# The newest version of glibc that something in the wheel asks for.
wheel=$(find "$out" -maxdepth 1 -name 'ot_distill-*.whl' -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d ' ' -f 2-)
unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
python3 -m zipfile -e "$wheel" "$unpacked"
mapfile -t executables < <(find "$unpacked" -name '*.so' -o -path '*/scripts/*' -type f)
glibc=$(readelf -V "${executables[@]}" | grep -o 'GLIBC_2\.[0-9.]*' | sort -Vu | tail -n 1)
echo "$wheel: $(($(stat -c %s "$wheel") >> 20)) MiB, needs ${glibc/_/ }, built in $((SECONDS - started)) s"
