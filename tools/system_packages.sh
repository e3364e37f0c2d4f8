#!/usr/bin/env bash
# Installs what building and testing needs beyond Python: a C++20 compiler and, unless the argument
# is "compiler", doctest, clang for the fuzzers and for AMD's GPU code, and a compiler and an emulator
# for ARM. Does nothing where all of it is there; without rights to install it says what is missing
# and goes on: all but the compiler can be done without.
set -euo pipefail

missing=()
command -v c++ >/dev/null || missing+=(g++)
if [ "${1:-}" != compiler ]; then
  echo '#include <doctest/doctest.h>' | c++ -x c++ -E - >/dev/null 2>&1 || missing+=(doctest-dev)
  tools/find_clang.sh >/dev/null || missing+=(clang-19 libclang-rt-19-dev)
  command -v ld.lld-19 ld.lld >/dev/null || missing+=(lld-19)
  command -v aarch64-linux-gnu-g++ >/dev/null || missing+=(g++-aarch64-linux-gnu)
  command -v qemu-aarch64 >/dev/null || missing+=(qemu-user)
fi
[ ${#missing[@]} -eq 0 ] && exit 0

sudo=()
[ "$(id -u)" -eq 0 ] || sudo=(sudo -n)
if command -v apt-get >/dev/null && "${sudo[@]}" true 2>/dev/null; then
  "${sudo[@]}" apt-get update -qq
  wanted=("${missing[@]}")
  missing=()
  for package in "${wanted[@]}"; do  # one by one: what is not to be had keeps no other away
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq "$package" >/dev/null ||
      missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && exit 0
fi
echo "Could not install: ${missing[*]}. Install them by hand; without doctest-dev CMake downloads" \
     "it, without the others the fuzzers, AMD's GPU code or the tests for ARM are left out." >&2
