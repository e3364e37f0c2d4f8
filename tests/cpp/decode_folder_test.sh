#!/bin/sh
# examples/decode_folder.cpp, run on two folders with the same weights: they give the same ids.
#
#   decode_folder_test.sh PATH_OF_THE_EXAMPLE
if [ -z "$PARD_TEST_GRAPHS" ] || [ -z "$PARD_RT_ONNXRUNTIME" ]; then
  echo "skipped: PARD_TEST_GRAPHS and PARD_RT_ONNXRUNTIME are not set"
  exit 77
fi
gqa=$("$1" "$PARD_TEST_GRAPHS/gqa" 5 17 42) || exit 1
portable=$("$1" "$PARD_TEST_GRAPHS/portable" 5 17 42) || exit 1
echo "gqa:      $gqa"
echo "portable: $portable"
[ "$(echo "$gqa" | wc -w)" -gt 4 ] && [ "$gqa" = "$portable" ] || exit 1

# Errors come on stderr, with a status of their own.
"$1" "$PARD_TEST_GRAPHS/nothing" 5 2>/dev/null && exit 1
"$1" "$PARD_TEST_GRAPHS/gqa" 5 999 2>/dev/null && exit 1
exit 0
