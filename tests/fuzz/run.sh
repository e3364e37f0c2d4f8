#!/usr/bin/env bash
# Runs every fuzzer in a build folder for some seconds each, its corpus kept there between runs.
set -euo pipefail
folder=$1
seconds=$2
for fuzzer in "$folder"/*_fuzz; do
  corpus="$fuzzer.corpus"
  mkdir -p "$corpus"
  echo "$(basename "$fuzzer"), ${seconds} s"
  "$fuzzer" -max_total_time="$seconds" -print_final_stats=1 -verbosity=0 -max_len=1024 \
    -artifact_prefix="$folder/" "$corpus"
done
