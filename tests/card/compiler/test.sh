#!/usr/bin/env bash
# Tests the compiler and the engine of the software card, without its driver: kernels of candle's and of ours against plain loops,
# every fault of faults.cu by its name, what is compiled anew after a change of the compiler, and the small floats against torch where a Python with torch is named.
#   source DIR/env.sh && test.sh DIR        DIR as build.sh made it
# CANDLE_KERNELS names candle-kernels' src (default: the one of this workspace), PYTHON one that has numpy and torch.
set -euo pipefail
(($# == 1)) || { echo "usage: test.sh DIR" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$here/../../..
out=$(cd "$1" && pwd)
source "$out/env.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cxx=${CXX:-g++}

candle=${CANDLE_KERNELS:-}
if [[ -z $candle ]]; then
    version=$(sed -n '/^name = "candle-kernels"$/{n;s/version = "\(.*\)"/\1/p}' "$root/Cargo.lock")
    candle=$(echo "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/candle-kernels-"$version"/src)
fi
[[ -e $candle/binary.cu ]] || { echo "no candle-kernels at $candle; run cargo fetch, or name its src in CANDLE_KERNELS" >&2; exit 1; }

"$cxx" -std=c++17 -O2 -c "$here/../driver/engine.cpp" -o "$work/engine.o"
"$cxx" -std=c++17 -O1 -c "$here/test/card.cpp" -o "$work/card.o"
for test in engine candle cache; do
    "$cxx" -std=c++17 -O1 -rdynamic "$here/test/${test}_test.cpp" "$work/card.o" "$work/engine.o" -o "$work/$test" -ldl
done
"$cxx" -std=c++17 -O1 "$here/test/table_test.cpp" "$here/source.cpp" "$here/../driver/dry_table.cpp" -o "$work/table"
"$work/table" "$root/kernels/src/cuda"
"$work/engine" "$here/test/faults.cu"
mkdir "$work/toolkit" "$work/card"
cp -r "$out/include" "$out/lib64" "$work/toolkit"
printf '#!/bin/sh\nexec %s "$@"\n' "${CARD_CXX:-c++}" > "$work/another-compiler"
chmod +x "$work/another-compiler"
"$work/cache" "$work/toolkit" "$work/card" "$work/another-compiler"
"$work/candle" "$candle" "$root/kernels/src/cuda"

# The host entries of libmoe, each of which refuses.
for source in moe/moe_gguf moe/moe_wmma moe/moe_wmma_gguf mmvq_gguf mmq_gguf/mmq_quantize mmq_gguf/mmq_instance_q4_0; do
    nvcc -gencode=arch=compute_89,code=sm_89 -c -o "$work/$(basename $source).o" --default-stream per-thread -std=c++17 "$candle/$source.cu"
done
nvcc --lib -o "$work/libmoe.a" "$work"/m*.o
for entry in moe_gemm_gguf moe_gemm_wmma moe_gemm_gguf_prefill launch_mmvq_gguf_q8_0_f16_plain launch_mmq_quantize_q8_1_D4 launch_mmq_gguf_q4_0; do
    echo "extern \"C\" void $entry(); int main() { $entry(); }" > "$work/call.cpp"
    "$cxx" "$work/call.cpp" "$work/libmoe.a" -o "$work/call"
    said=$( (CARD_DIR=$work "$work/call") 2>&1 || true)
    [[ $said == *"card: refused: libmoe entry $entry is not part of the stand-in"* ]] || { echo "$entry says: $said" >&2; exit 1; }
    grep -q "libmoe entry $entry is" "$work/refusals"
done

if [[ -n ${PYTHON:-} ]]; then
    "$cxx" -std=c++17 -O2 -shared -fPIC -w -I"$out/include" "$here/test/floats.cpp" -o "$work/floats.so" -Wl,--unresolved-symbols=ignore-all
    "$PYTHON" "$here/test/floats.py" "$work/floats.so"
fi
echo "the compiler and the engine: all right"
