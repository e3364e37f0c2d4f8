#!/usr/bin/env bash
# Prints a clang++ that can build libFuzzer targets; fails where there is none.
set -euo pipefail

for candidate in ${PARD_CLANG:-} clang++ clang++-{22..15}; do
  command -v "$candidate" >/dev/null || continue
  if echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' |
    "$candidate" -x c++ -fsanitize=fuzzer,address - -o /dev/null 2>/dev/null; then
    command -v "$candidate"
    exit 0
  fi
done
echo "no clang++ with libFuzzer" >&2
exit 1
