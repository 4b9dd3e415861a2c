#!/usr/bin/env bash
# Builds the Containerfile's image with podman or docker and runs both programs in it. By hand: CI has no engine, and no hour for it.
#
#   tests/container.sh          CUDA_COMPUTE_CAP names the card, 89 unless it is set
#
# With a card that the engine can pass in, a teacher computes a cache on it; without one, what the programs miss has to be the driver alone.
set -euo pipefail
cd "$(dirname "$0")/.."

engine=''
for name in podman docker; do
  # A client without its daemon is no engine.
  if command -v "$name" > /dev/null && "$name" info > /dev/null 2>&1; then
    engine=$name
    break
  fi
done
if [[ -z $engine ]]; then
  echo "container.sh: neither podman nor docker can run containers here; nothing was built or tested" >&2
  exit 1
fi

started=$SECONDS
"$engine" build -t ot-distill -f Containerfile --build-arg "CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-89}" .
echo "container.sh: built with $engine in $((SECONDS - started)) s"

gpu=(--device nvidia.com/gpu=all)
[[ $engine == docker ]] && gpu=(--gpus all)
inside=("$engine" run --rm -v "$PWD:/data:ro")
work='
  student-trainer --version
  teacher-server precompute --device "$1" --model assets/teacher --corpus tests/fixtures/corpus/text.jsonl --out /tmp/cache
  teacher-server inspect /tmp/cache'
if "${inside[@]}" "${gpu[@]}" ot-distill true 2> /dev/null; then
  "${inside[@]}" "${gpu[@]}" ot-distill sh -euc "$work" -- cuda
  echo "container.sh: both programs run, and the teacher computes on the card"
else
  missing=$("${inside[@]}" ot-distill sh -c 'ldd /usr/local/bin/teacher-server /usr/local/bin/student-trainer | grep "not found" | sort -u')
  echo "$missing"
  if grep -vE '^$|libcuda\.so\.1 ' <<< "$missing"; then
    echo "container.sh: the image lacks more than the driver" >&2
    exit 1
  fi
  # With the toolkit's stub in the driver's place both start, and compute on the CPU.
  stub=$(mktemp -d)
  trap 'rm -rf "$stub"' EXIT
  base=$(sed -n 's/^ARG BASE=//p' Containerfile) version=$(sed -n 's/^ARG CUDA_VERSION=//p' Containerfile)
  "$engine" run --rm "docker.io/nvidia/cuda:$version-devel-$base" cat /usr/local/cuda/lib64/stubs/libcuda.so > "$stub/libcuda.so.1"
  "${inside[@]}" -v "$stub:/driver:ro" -e LD_LIBRARY_PATH=/driver ot-distill sh -euc "$work" -- cpu
  echo "container.sh: no card can be passed in here, so both programs ran on the CPU, with the toolkit's stub in the place of the driver"
fi
