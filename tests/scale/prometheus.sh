#!/usr/bin/env bash
# A Prometheus that scrapes both programs at work, and is asked for what they showed. By hand: it needs `prometheus` on the path.
#
#   tests/scale/prometheus.sh BIN      the directory with teacher-server and student-trainer
set -euo pipefail
bin=$(realpath "$1")
cd "$(dirname "$0")/../.."
. tests/scale/work.sh
cat > "$work/prometheus.yml" <<Y
global: {scrape_interval: 1s}
scrape_configs:
  - job_name: ot-distill
    static_configs:
      - targets: ["127.0.0.1:$((port + 1))", "127.0.0.1:$((port + 2))"]
Y
prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/data" --web.listen-address="127.0.0.1:$((port + 3))" > "$work/prometheus.log" 2>&1 &
"$bin/teacher-server" serve --model assets/teacher --corpus tests/fixtures/corpus/text.jsonl --bind "127.0.0.1:$port" --metrics-addr "127.0.0.1:$((port + 1))" \
  > "$work/teacher.log" 2>&1 &
"$bin/student-trainer" train --student assets/student --teacher "http://127.0.0.1:$port" --out "$work/run" --epochs 100000 --metrics-addr "127.0.0.1:$((port + 2))" \
  2> "$work/trainer.log" &
ask() { curl -sfG "http://127.0.0.1:$((port + 3))/api/v1/query" --data-urlencode "query=$1" | python3 -c 'import json, sys
for found in json.load(sys.stdin)["data"]["result"]:
    print(found["metric"].get("__name__", sys.argv[1]), found["value"][1])' "$1"; }
sleep 20
[[ $(ask 'sum(up)' | cut -d ' ' -f 2) == 2 ]]
for query in 'rate(ot_distill_teacher_frames_sent_total[10s])' ot_distill_teacher_tokens_total ot_distill_resident_bytes ot_distill_train_step ot_distill_train_loss; do
  found=$(ask "$query")
  [[ -n $found ]] || { echo "prometheus.sh: Prometheus has no $query" >&2; exit 1; }
  echo "$found"
done
# Every metric that the dashboard asks for is one that is there.
for metric in $(grep -oE 'ot_distill_[a-z_]+' deploy/grafana.json | sort -u); do
  [[ -n $(ask "$metric") ]] || echo "not shown by this run: $metric"
done
