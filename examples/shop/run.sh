#!/usr/bin/env bash
# A model that answers the customers of an invented shop: pretrain, fine-tune on conversations, ask.
#   examples/shop/run.sh                            BUDGET=150s is the time of the quickstart
#   examples/shop/run.sh -s train.epochs=3 --force  further arguments go to gptcli finetune
set -euo pipefail
cd "$(dirname "$0")/../.."

[[ -d quickstart/run ]] || gptcli quickstart --budget "${BUDGET:-150s}" >&2
gptcli finetune examples/shop/finetune.yaml "$@" >&2

echo "== a conversation" >&2
gptcli chat runs/shop --temperature 0 <<'QUESTIONS'
When is the shop open on weekdays?
And on Sunday?
How much is an oak lamp?
QUESTIONS

echo "== questions that were held out: the share of answers that hold every fact they must" >&2
jq -c '.wanted = .messages[-1].content | .messages |= .[:-1] | .temperature = 0 | .max_tokens = 60' examples/shop/heldout.jsonl |
  gptcli chat runs/shop --jsonl > runs/shop/answers.jsonl
jq -c 'select(.text as $answer | any(.facts[]; . as $fact | $answer | contains($fact) | not))
       | {question: .messages[-2].content, text, wanted}' runs/shop/answers.jsonl >&2
jq -s 'map(.text as $answer | all(.facts[]; . as $fact | $answer | contains($fact)))
       | {questions: length, right: map(select(.)) | length}' runs/shop/answers.jsonl
