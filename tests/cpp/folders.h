// What tests over ONNX folders share. Those that run graphs need two variables, and say so where
// they are not set:
//
//   PARD_TEST_GRAPHS      what tests/cpp/onnx/make_graphs.py wrote
//   PARD_RT_ONNXRUNTIME   libonnxruntime.so.1.x.y, or the directory it lies in
#pragma once

#include <doctest/doctest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <system_error>

namespace pard::test {

// A directory of this process's own, gone at the end of the scope.
class Scratch {
 public:
  Scratch()
      : path_(std::filesystem::temp_directory_path() /
              ("pard_onnx_" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(path_);
  }
  ~Scratch() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  const std::filesystem::path& path() const { return path_; }

  void write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ / name, std::ios::binary) << text;
  }

 private:
  std::filesystem::path path_;
};

inline std::string read(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

inline std::string replaced(std::string text, const std::string& old, const std::string& now) {
  const std::size_t at = text.find(old);
  REQUIRE(at != text.npos);
  return text.replace(at, old.size(), now);
}

// What an error says, all parts of it; empty where none is thrown.
template <class E, class F>
std::string message_of(const F& action) {
  try {
    action();
  } catch (const E& error) {
    return error.what();
  }
  return "";
}

inline bool mentions(const std::string& text, const std::string& part) {
  return text.find(part) != text.npos;
}

inline const char* graphs_or_skip() {
  const char* graphs = std::getenv("PARD_TEST_GRAPHS");
  if (graphs == nullptr || std::getenv("PARD_RT_ONNXRUNTIME") == nullptr) {
    MESSAGE("skipped: PARD_TEST_GRAPHS and PARD_RT_ONNXRUNTIME are not set");
    return nullptr;
  }
  return graphs;
}

}  // namespace pard::test
