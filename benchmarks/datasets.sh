#!/usr/bin/env bash
# A public data set from its files to its scores: prepared, validated, trained, evaluated. Finished parts are kept.
# Usage: benchmarks/datasets.sh mosi|meld|cped [finetune.py options, e.g. --adapter gated_xlstm]
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false
bin=$PWD/.venv/bin files=${DATA:-../shared/data}

prepare() { [ -d "$1" ] || "$bin/llm-mer" "${@:2}" --output "$1"; }

name=${1:?mosi, meld or cped}
shift
case $name in
mosi) # text, sound and pictures, English and Chinese, regression and polarity, with the tiny bilingual Llama
  data=data/mosi config=configs/mosi.yaml decoder=none
  prepare $data prepare mosi "$files/mosi" --neighbours 2
  ;;
meld) # English dialogues as text, seven emotions
  data=data/meld_ngrams config=configs/meld_ngrams.yaml decoder=offline
  prepare $data extract --manifest "meld:$files/meld" --audio none --vision none --text ngrams
  ;;
cped) # Chinese dialogues as text, thirteen emotions
  data=data/cped config=configs/cped_text.yaml decoder=offline
  prepare $data extract --manifest "cped:$files/cped" --audio none --vision none --text ngrams
  ;;
*)
  sed -n 's/^\([a-z]*\)) # /\1: /p' "$0"
  exit 2
  ;;
esac
"$bin/llm-mer" validate $data || [ $? -eq 1 ] # 1: warnings only
"$bin/accelerate" launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no finetune.py \
  --config $config --data $data --output_dir "runs/datasets/$name" "$@"
"$bin/llm-mer" evaluate --checkpoint "runs/datasets/$name" --data $data --dialogue_decoder $decoder
"$bin/llm-mer" report --evaluations "runs/datasets/$name" --output "runs/datasets/$name/report.html"
