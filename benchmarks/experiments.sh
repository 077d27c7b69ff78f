#!/usr/bin/env bash
# The comparisons behind docs/results.md, by name. A finished run is kept: the same command does the rest.
# Usage: benchmarks/experiments.sh NAME   (without a name it lists them)
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false
bin=$PWD/.venv/bin
mosi=${MOSI:-../shared/data/mosi} meld=${MELD:-../shared/data/meld}
text_only="*:use_audio=false,use_vision=false" audio_only="*:use_text=false,use_vision=false"
vision_only="*:use_text=false,use_audio=false"

metrics=(--metrics accuracy mae) # docs/results.md shows these
compare() { "$bin/llm-mer" compare --output "runs/experiments/$name" "${metrics[@]}" "$@"; }
corpus() {
  [ -d runs/quickstart/corpus ] || "$bin/llm-mer" make-corpus --output runs/quickstart/corpus --utterances_per_language 360
  [ -d runs/quickstart/features ] ||
    "$bin/llm-mer" extract --manifest runs/quickstart/corpus/manifest.jsonl --output runs/quickstart/features
}
mosi_store() { [ -d data/mosi ] || "$bin/llm-mer" prepare mosi "$mosi" --output data/mosi --neighbours 2; }
meld_store() {
  [ -d data/meld ] || "$bin/llm-mer" extract --manifest "meld:$meld" --audio none --vision none --output data/meld \
    --text "${TEXT_ENCODER:?set TEXT_ENCODER to the folder or hub name of a text encoder}"
}

name=${1:-}
case $name in
adapters) # six adapters × emotion and sentiment × both languages, every modality subset, shuffled, dialogue decoder
  corpus
  compare --config configs/quickstart.yaml --adapters all --conditions subsets shuffle:audio,vision \
    --subsets neutral_words conflict --dialogue_decoder
  ;;
single) # EGMF without the transcript in the prompt: all modalities, and each alone
  corpus
  compare --config configs/quickstart.yaml --adapters egmf --overrides prompts=notext num_train_epochs=14 \
    --ablations "${text_only/\*/egmf}" "${audio_only/\*/egmf}" "${vision_only/\*/egmf}" --subsets neutral_words conflict
  ;;
labels) # LSGMER: label words as a start, vision not label-gated; three seeds
  corpus
  compare --config configs/quickstart.yaml --adapters lsgmer --seeds 1111 1112 1113 --subsets neutral_words \
    --ablations lsgmer:label_init=backbone lsgmer:label_gate_vision=false \
    --overrides eval_strategy=no save_strategy=no load_best_model_at_end=false
  ;;
mosi_heads) # MOSI, adapters' own heads
  mosi_store
  compare --config configs/mosi.yaml --adapters all --backbones none
  ;;
mosi) # MOSI, with the tiny backbone
  mosi_store
  compare --config configs/mosi.yaml --adapters all --backbones tiny:llama
  ;;
mosi_smollm2) # MOSI's polarity in English with SmolLM2: the sentence alone, and with features as pseudo tokens in four ways
  mosi_store
  metrics=(--metrics accuracy)
  compare --config configs/mosi_smollm2.yaml --adapters egmf --twins text --conditions shuffle:audio,vision shuffle:transcript \
    --ablations "egmf:use_text=false" "egmf:use_text=false,token_expansion=labels" "egmf:token_expansion=labels"
  ;;
objectives) # MOSI in English, with the tiny backbone: tokens, the distribution of answers, and a read-out, at equal training
  mosi_store
  compare --config configs/mosi.yaml --adapters gated_projector --backbones tiny:llama --overrides languages=en \
    --keep_models --ablations "*:objective=answers" "*:objective=answers,number_objective=absolute_error" "*:read_out=true" \
    "*:read_out=true,loss_weights=lm=0" "*:read_out=true,objective=answers,number_objective=absolute_error"
  # The same language model as it answers freely: its texts are parsed.
  for run in runs/experiments/objectives/*-llama-full-*; do
    "$bin/llm-mer" evaluate --checkpoint "$run" --data data/mosi --languages en --generate --output runs/experiments/objectives/generation
  done
  ;;
mosi_single) # MOSI, adapters' own heads, each modality alone
  mosi_store
  compare --config configs/mosi.yaml --adapters egmf lsgmer gia_mic lpgnet gated_xlstm --backbones none \
    --ablations "$text_only" "$audio_only" "$vision_only"
  ;;
meld) # MELD's dialogues as text, with the dialogue decoder
  meld_store
  compare --config configs/meld_text.yaml --adapters gated_projector lpgnet gated_xlstm --dialogue_decoder \
    --metrics accuracy weighted_f1
  ;;
ravdess_folds) # RAVDESS's voices, the own head of the gated projector, each of twelve actors left out in turn
  [ -d data/ravdess12 ] ||
    "$bin/llm-mer" extract --manifest "ravdess:${RAVDESS:-../shared/data/ravdess12}" --vision none --output data/ravdess12
  metrics=(--metrics accuracy ua)
  compare --config configs/ravdess_voice.yaml --folds speaker --adapters gated_projector
  ;;
crosslingual) # trained on English, Chinese or both × tested on each: the quickstart corpus (two seeds) and MOSI (one)
  corpus
  mosi_store
  "$bin/llm-mer" crosslingual --config configs/quickstart.yaml --seeds 1111 1112 --output runs/experiments/crosslingual "${metrics[@]}"
  "$bin/llm-mer" crosslingual --config configs/mosi.yaml --seeds 1111 --output runs/experiments/crosslingual_mosi \
    "${metrics[@]}"
  ;;
lora) # one LoRA for both languages, one for each, both, and none; two seeds
  corpus
  compare --config configs/quickstart.yaml --adapters egmf --seeds 1111 1112 --ablations lora
  ;;
prompts) # a model trained with each prompt, and the quickstart's own model asked in every prompt and order of labels
  corpus
  "$bin/llm-mer" prompts compare --config configs/quickstart.yaml --prompts short notext context instruct \
    --output runs/experiments/prompts
  "$bin/llm-mer" prompts compare --checkpoint runs/quickstart/egmf --data runs/quickstart/features --generate \
    --output runs/experiments/prompts_asked
  ;;
*)
  sed -n 's/^\([a-z_]*\)) # /\1: /p' "$0"
  exit 2
  ;;
esac
