#!/usr/bin/env bash
# A classifier of reviews, positive or negative: pretrain, fine-tune on labelled rows, label new ones.
#   examples/reviews/run.sh                            BUDGET=150s is the time of the quickstart
#   examples/reviews/run.sh -s train.epochs=3 --force  further arguments go to gptcli finetune
set -euo pipefail
cd "$(dirname "$0")/../.."

[[ -d quickstart/run ]] || gptcli quickstart --budget "${BUDGET:-150s}" >&2
gptcli finetune examples/reviews/finetune.yaml "$@" >&2

echo "== new reviews" >&2
printf 'A wonderful lamp, I love it.\nThe chair broke after a week.\n' | gptcli classify runs/reviews

echo "== reviews that were held out" >&2
jq -c '.wanted = .label' examples/reviews/heldout.jsonl | gptcli classify runs/reviews --jsonl |
  jq -s '{reviews: length, right: map(select(.label == .wanted)) | length}'
