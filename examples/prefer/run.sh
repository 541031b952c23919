#!/usr/bin/env bash
# The shop's model learns from pairs of answers to be brief: pretrain, converse, prefer, ask.
#   examples/prefer/run.sh                            BUDGET=150s is the time of the quickstart
#   examples/prefer/run.sh -s prefer.loss=ipo --force further arguments go to the last gptcli finetune
set -euo pipefail
cd "$(dirname "$0")/../.."

[[ -d runs/shop ]] || examples/shop/run.sh > /dev/null
gptcli finetune examples/prefer/finetune.yaml "$@" >&2

echo "== words in an answer to a question that was held out, before and after" >&2
for run in runs/shop runs/prefer; do
  jq -c '{messages: [{role: "user", content: .prompt}], temperature: 0, max_tokens: 60}' examples/prefer/heldout.jsonl |
    gptcli chat "$run" --jsonl -q |
    jq -s -c --arg run "$run" '{run: $run, answers: length, words: (map(.text | split(" ") | length) | add / length)}'
done
