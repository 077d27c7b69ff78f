#!/usr/bin/env bash
# The main job, end to end on real media: clips -> features -> training -> evaluation -> inference -> report.
# Usage: scripts/quickstart.sh [utterances per language, default 360; 600 is the full corpus]
set -euo pipefail
cd "$(dirname "$0")/.."
utterances=${1:-360}
out=runs/quickstart
[ "$utterances" = 360 ] || out=runs/quickstart-$utterances
bin=$PWD/.venv/bin
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false
step() { printf '\n\033[1m== %s (%s s)\033[0m\n' "$*" "$SECONDS"; }
launch() { "$bin/accelerate" launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no "$@"; }

mkdir -p "$out"
step "1/6 a bilingual corpus of real clips, and beside it a tiny bilingual language model"
"$bin/llm-mer" train-backbone > "$out/backbone.log" 2>&1 &
backbone=$!
"$bin/llm-mer" make-corpus --output "$out/corpus" --utterances_per_language "$utterances"
step "2/6 features"
"$bin/llm-mer" extract --manifest "$out/corpus/manifest.jsonl" --output "$out/features"
wait "$backbone" || { cat "$out/backbone.log" >&2; exit 1; }

step "3/6 fine-tuning: EGMF, and beside it the same model without audio and vision"
launch finetune.py --config configs/quickstart_text.yaml --data "$out/features" --output_dir "$out/text" > "$out/text.log" 2>&1 &
text=$!
launch finetune.py --config configs/quickstart.yaml --data "$out/features" --output_dir "$out/egmf"
wait "$text" || { tail -n 30 "$out/text.log" >&2; exit 1; }

step "4/6 evaluation on held-out speakers"
"$bin/llm-mer" evaluate --checkpoint "$out/text" --data "$out/features" > "$out/text_evaluation.log" 2>&1 &
text=$!
"$bin/llm-mer" evaluate --checkpoint "$out/egmf" --data "$out/features" \
  --conditions shuffle:audio,vision without:audio,vision without:text --generate --dialogue_decoder offline --keep_features \
  > "$out/evaluation.txt"
grep -E '^(as is|audio and vision shuffled) ' "$out/evaluation.txt"
wait "$text" || { cat "$out/text_evaluation.log" >&2; exit 1; }

step "5/6 inference on a held-out English and a held-out Chinese clip"
rm -f "$out/answers.jsonl"
grep -E '"id": "(en|zh)-test-000-02"' "$out/corpus/manifest.jsonl" > "$out/corpus/held_out.jsonl"
"$bin/python" infer.py --checkpoint "$out/egmf" --manifest "$out/corpus/held_out.jsonl" --output "$out/answers.jsonl" --echo

step "6/6 report"
"$bin/llm-mer" report --evaluations "$out/egmf" --text_only "$out/text" --inference "$out/answers.jsonl" \
  --facts quickstart --output "$out/report.html"
step "done: open $out/report.html"
