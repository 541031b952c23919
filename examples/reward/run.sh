#!/usr/bin/env bash
# A model learns to add from rewards alone: sums with random results, pretrain, reward, ask.
#   examples/reward/run.sh                              further arguments go to the gptcli finetune
set -euo pipefail
cd "$(dirname "$0")/../.."

mkdir -p runs
python3 - << 'PYTHON'
import json
import random

draw = random.Random(1)
sums = [(a, b) for a in range(10) for b in range(10 - a)]
with open("runs/sums.jsonl", "w") as file:  # the form of a sum; its result is any digit
    file.writelines(json.dumps({"text": f"{a}+{b}={draw.randrange(10)}"}) + "\n" for a, b in sums * 200)
with open("runs/prompts.jsonl", "w") as file:
    file.writelines(json.dumps({"prompt": f"{a}+{b}=", "answer": a + b}) + "\n" for a, b in sums)
PYTHON
[[ -d runs/sums ]] || gptcli pretrain examples/reward/base.yaml -q
gptcli finetune examples/reward/finetune.yaml "$@" >&2
gptcli plot runs/adds --metric train.reward --metric validation.reward
echo "== 3+4=" >&2
gptcli generate runs/adds "3+4=" --temperature 0
