// Bytes a stranger's folder may hold: pard_rt.json, genai_config.json, model.onnx, token_bytes.bin.
// The readers answer with what is in them or a FolderError, never with anything else.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "pard/error.h"
#include "pard/onnx/folder.h"
#include "pard/onnx/json.h"
#include "pard/onnx/onnx_file.h"
#include "pard/onnx/utf8.h"
#include "pard/token_bytes.h"

namespace {

template <class F>
void expect_folder_error(const F& read) {
  try {
    read();
  } catch (const pard::FolderError&) {
  }
}

// Cut into tokens anywhere, bytes become the same text.
void check_text(const pard::TokenBytes& table, pard::Token num_tokens) {
  pard::Utf8Stream stream;
  std::string text;
  std::string bytes;
  for (pard::Token token = 0; token < num_tokens; ++token) {
    text += stream.feed(table[token]);
    bytes += table[token];
  }
  text += stream.flush();
  std::string whole = stream.feed(bytes);
  whole += stream.flush();
  if (text != whole) std::abort();
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
  expect_folder_error([&] {
    const auto num_tokens = static_cast<pard::Token>(size == 0 ? 0 : data[0]);
    check_text(pard::TokenBytes(std::string(bytes), num_tokens, "token_bytes.bin"), num_tokens);
  });
  return 0;
}
