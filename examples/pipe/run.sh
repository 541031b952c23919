#!/usr/bin/env bash
# The basic pipe: text -> tokenizer -> model -> measured -> text. The corpus is the language reference in Python itself.
#   examples/pipe/run.sh                     about two minutes on two cores
#   examples/pipe/run.sh -s train.steps=20   further arguments go to gptcli pretrain
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p runs/pipe

python3 -c 'from pydoc_data.topics import topics; print(*topics.values(), sep="\n\n")' > runs/pipe/all.txt
head -n -800 runs/pipe/all.txt > runs/pipe/corpus.txt
tail -n 800 runs/pipe/all.txt > runs/pipe/held-out.txt

gptcli train-tokenizer - -o runs/pipe/tokenizer.json --vocab-size 2048 --force < runs/pipe/corpus.txt >&2
gptcli pretrain examples/pipe/pretrain.yaml --force "$@" >&2
gptcli evaluate runs/pipe/run runs/pipe/held-out.txt --json | jq '{bits_per_byte, perplexity}'
echo "The value of" | gptcli generate runs/pipe/run --max-tokens 40 --seed 1 --json | jq -r '.prompt + .text'
