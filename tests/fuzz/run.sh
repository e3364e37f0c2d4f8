#!/usr/bin/env bash
# Runs every fuzzer in a build folder for some seconds, side by side; corpora stay there between runs.
set -euo pipefail
folder=$1
seconds=$2
declare -A running
for fuzzer in "$folder"/*_fuzz; do
  mkdir -p "$fuzzer.corpus"
  "$fuzzer" -max_total_time="$seconds" -print_final_stats=1 -verbosity=0 -max_len=1024 \
    -artifact_prefix="$fuzzer." "$fuzzer.corpus" >"$fuzzer.log" 2>&1 &
  running[$fuzzer]=$!
done
failed=0
for fuzzer in "${!running[@]}"; do
  wait "${running[$fuzzer]}" && outcome="found nothing" || { outcome="FAILED"; failed=1; }
  echo "$(basename "$fuzzer"): $outcome in $seconds s," \
       "$(sed -n 's/^stat::number_of_executed_units: *//p' "$fuzzer.log") runs"
  [ "$outcome" = "found nothing" ] || cat "$fuzzer.log"
done
exit "$failed"
