#!/usr/bin/env bash
# Compiles the software card into DIR: bin/nvcc, the six libraries, the headers, and env.sh to source before a build or a run.
#   build.sh DIR          what has not changed since is not compiled again
#   build.sh DIR --test   then runs the tests of the card itself
# CXX names the compiler (default g++), JOBS how many run at once (default: one for each processor).
set -euo pipefail

usage() {
    echo "usage: build.sh DIR [--test]" >&2
    exit 2
}
(($# == 1)) || [[ $# == 2 && $2 == --test ]] || usage

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
emulator=$here/../../kernels/src/emulator
mkdir -p "$1"
out=$(cd "$1" && pwd)
cxx=${CXX:-g++}
jobs=${JOBS:-$(nproc)}
flags=(-std=c++17 -O2 -g1 -fPIC -fno-semantic-interposition -Wall -Wextra)
mkdir -p "$out"/{bin,lib64,include,objects}

# Sources of each part; an object is named after its path.
compile() {
    local source=$1 object=$2
    # Hooks of the engine are called where the stack of a fiber ends: they must not be instrumented themselves.
    "$cxx" "${flags[@]}" -c "$source" -o "$object.tmp"
    mv "$object.tmp" "$object"
}
newest_header=$(find "$here" "$emulator" \( -name '*.hpp' -o -name '*.h' \) -printf '%T@ %p\n' | sort -n | tail -1 | cut -d' ' -f2-)
objects_of() {
    local source
    for source in "$@"; do
        echo "$out/objects/$(basename "$(dirname "$source")")-$(basename "$source" .cpp).o"
    done
}
compile_all() {
    local source object running=0 failed=0
    for source in "$@"; do
        object=$(objects_of "$source")
        if [[ $object -nt $source && $object -nt $newest_header && $object -nt $here/build.sh ]]; then continue; fi
        if ((running >= jobs)); then
            wait -n || failed=1
            running=$((running - 1))
        fi
        compile "$source" "$object" &
        running=$((running + 1))
    done
    while ((running > 0)); do
        wait -n || failed=1
        running=$((running - 1))
    done
    return $failed
}

# library NAME MAJOR OBJECT...: libNAME.so.MAJOR with its soname, and the name that a linker looks for.
library() {
    local name=$1 file=lib$1.so.$2
    shift 2
    "$cxx" -shared -o "$out/lib64/$file.tmp" -Wl,-soname,"$file" -Wl,-Bsymbolic -Wl,--no-undefined -Wl,-rpath,'$ORIGIN' \
        "$@" -L"$out/lib64" -ldl -lpthread
    mv "$out/lib64/$file.tmp" "$out/lib64/$file"
    ln -sf "$file" "$out/lib64/lib$name.so"
}

driver=("$here"/driver/*.cpp)
libraries=("$here"/blas.cpp "$here"/gemm.cpp "$here"/uses.cpp "$here"/rand.cpp "$here"/runtime.cpp "$here"/lt.cpp)
compiler=()
for source in "$here"/compiler/*.cpp; do [[ -e $source ]] && compiler+=("$source"); done
tests=("$here"/driver/tests/*.cpp)

compile_all "${driver[@]}" "${libraries[@]}" "${compiler[@]}" "${tests[@]}"
object() { objects_of "$here/$1.cpp"; }
mapfile -t driver_objects < <(objects_of "${driver[@]}")
library cuda 1 "${driver_objects[@]}"
library cublas 13 "$(object blas)" "$(object gemm)" "$(object uses)" -lcuda
library curand 10 "$(object rand)" -lcuda
library cudart 13 "$(object runtime)"
library cublasLt 13 "$(object lt)"

# nvcc and libnvrtc share all but their entries.
if [[ -e $here/compiler/nvcc.cpp && -e $here/compiler/nvrtc.cpp ]]; then
    shared=()
    for source in "${compiler[@]}"; do
        case $(basename "$source") in nvcc.cpp | nvrtc.cpp) ;; *) shared+=("$(objects_of "$source")") ;; esac
    done
    "$cxx" -o "$out/bin/nvcc.tmp" "$(object compiler/nvcc)" "${shared[@]}" -ldl
    mv "$out/bin/nvcc.tmp" "$out/bin/nvcc"
    library nvrtc 13 "$(object compiler/nvrtc)" "${shared[@]}"
fi

# What kernels include, and what the compiler puts before and after their text.
rm -rf "$out/include"
mkdir -p "$out/include/card"
cp -r "$here"/include/. "$out/include/"
cp "$emulator"/*.hpp "$out/include/card/"

cat > "$out/env.sh" <<ENV
export CARD_HOME=$out CUDA_HOME=$out CUDA_ROOT=$out CUDA_PATH=$out CUDA_TOOLKIT_ROOT_DIR=$out
export NVCC=$out/bin/nvcc
export PATH=$out/bin:\$PATH
export LD_LIBRARY_PATH=$out/lib64\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}
export LIBRARY_PATH=$out/lib64\${LIBRARY_PATH:+:\$LIBRARY_PATH}
export CUDARC_CUDA_VERSION=13000 CUDA_COMPUTE_CAP=89
ENV
echo "ready: source $out/env.sh"

if [[ ${2:-} == --test ]]; then
    mapfile -t test_objects < <(objects_of "${tests[@]}")
    "$cxx" -o "$out/bin/card-test" "${test_objects[@]}" "$(object gemm)" -L"$out/lib64" -lcuda -lcublas -lcurand -lpthread -Wl,-rpath,"$out/lib64"
    "$out/bin/nvcc" --ptx -O3 -o "$out/objects/test-kernels.ptx" "$here/driver/tests/kernels.cu"
    CARD_TEST_KERNELS=$out/objects/test-kernels.ptx "$out/bin/card-test"
    "$here/compiler/test.sh" "$out"
fi
