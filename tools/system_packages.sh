#!/usr/bin/env bash
# Installs what building and testing needs beyond Python: a C++20 compiler and, unless the argument
# is "compiler", doctest, and clang for the fuzzers and for AMD's GPU code. Does nothing where all of
# it is there; without rights to install it says what is missing and goes on: all but the compiler
# can be done without.
set -euo pipefail

missing=()
command -v c++ >/dev/null || missing+=(g++)
if [ "${1:-}" != compiler ]; then
  echo '#include <doctest/doctest.h>' | c++ -x c++ -E - >/dev/null 2>&1 || missing+=(doctest-dev)
  tools/find_clang.sh >/dev/null || missing+=(clang-19 libclang-rt-19-dev)
  command -v ld.lld-19 ld.lld >/dev/null || missing+=(lld-19)
fi
[ ${#missing[@]} -eq 0 ] && exit 0

sudo=()
[ "$(id -u)" -eq 0 ] || sudo=(sudo -n)
if command -v apt-get >/dev/null && "${sudo[@]}" true 2>/dev/null; then
  "${sudo[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq "${missing[@]}" >/dev/null && exit 0
fi
echo "Could not install: ${missing[*]}. Install them by hand; without doctest-dev CMake downloads" \
     "it, without clang and lld the fuzzers and AMD's GPU code are left out." >&2
