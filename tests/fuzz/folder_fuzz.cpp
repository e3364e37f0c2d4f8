// Bytes a stranger's folder may hold: pard_rt.json, genai_config.json, model.onnx. The readers
// answer with a contract or a FolderError, never with anything else.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "pard/error.h"
#include "pard/onnx/folder.h"
#include "pard/onnx/json.h"
#include "pard/onnx/onnx_file.h"

namespace {

template <class F>
void expect_folder_error(const F& read) {
  try {
    read();
  } catch (const pard::FolderError&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  try {
    pard::json::parse(bytes);
  } catch (const pard::json::ParseError&) {
  }
  expect_folder_error([&] { pard::parse_pard_contract(bytes, "pard_rt.json"); });
  expect_folder_error([&] { pard::parse_builder_contract(bytes, "genai_config.json"); });
  expect_folder_error([&] { pard::summarize_onnx(bytes, "model.onnx"); });
  return 0;
}
