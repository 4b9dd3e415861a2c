# For scripts here to read: a directory for their files ($work) and the first of some free ports ($port). At the end what they started is ended.
work=$(mktemp -d)
cleanup() {
  kill $(jobs -p) 2> /dev/null || true
  wait
  rm -rf "$work"
}
trap cleanup EXIT
port=$((20000 + RANDOM % 10000))
