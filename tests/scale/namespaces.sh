#!/usr/bin/env bash
# Trainer and teacher in network namespaces of their own, whose cable is pulled for 30 seconds in mid-run: nothing is refused and nothing cut,
# pieces just do not come. The adapter has to be, byte for byte, that of a run without it. By hand: it needs the root user.
#
#   tests/scale/namespaces.sh BIN      the directory with teacher-server and student-trainer
set -euo pipefail
bin=$(realpath "$1")
cd "$(dirname "$0")/../.."
. tests/scale/work.sh
teacher=distill-teacher-$$ trainer=distill-trainer-$$
ip netns add "$teacher"
ip netns add "$trainer"
remove() {
  cleanup
  ip netns del "$teacher"
  ip netns del "$trainer"
}
trap remove EXIT
ip link add "t$$" netns "$teacher" type veth peer name "s$$" netns "$trainer"
for end in "$teacher t$$ 10.77.0.1" "$trainer s$$ 10.77.0.2"; do
  read -r namespace device address <<< "$end"
  ip -n "$namespace" address add "$address/24" dev "$device"
  ip -n "$namespace" link set "$device" up
  ip -n "$namespace" link set lo up
done
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=teacher -addext subjectAltName=IP:10.77.0.1 -addext basicConstraints=CA:FALSE \
  -keyout "$work/key.pem" -out "$work/cert.pem" 2> /dev/null
export OT_DISTILL_TOKEN=a-token-of-a-test
ip netns exec "$teacher" "$bin/teacher-server" serve --model assets/teacher --corpus tests/fixtures/corpus/text.jsonl --bind 10.77.0.1:50051 \
  --tls-cert "$work/cert.pem" --tls-key "$work/key.pem" > "$work/teacher.log" 2>&1 &
until grep -q 'serving on' "$work/teacher.log"; do sleep 0.1; done
train() {
  ip netns exec "$trainer" "$bin/student-trainer" train --student assets/student --teacher https://10.77.0.1:50051 --ca-cert "$work/cert.pem" --out "$work/$1" --steps 2000 --prefetch-frames 4 --seed 7 \
    2> "$work/$1.log"
}
step() { cat "$work/cut/metrics.jsonl" 2> /dev/null | wc -l; }
train whole
train cut &
run=$!
until (($(step) > 200)); do sleep 0.05; done
ip -n "$teacher" link set "t$$" down
sleep 5
before=$(step)
sleep 25
echo "step $before five seconds after the cable was pulled, $(step) 25 seconds later"
ip -n "$teacher" link set "t$$" up
pulled=$SECONDS
wait $run
echo "over $((SECONDS - pulled)) s after it was back; what the trainer said of it:"
grep -iE 'connect|teacher|again' "$work/cut.log" | sort | uniq -c | sort -rn | head -n 8
cmp "$work/whole/adapter/adapter_model.safetensors" "$work/cut/adapter/adapter_model.safetensors"
echo 'byte for byte the adapter of a run that was not cut'
