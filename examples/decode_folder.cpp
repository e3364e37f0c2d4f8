// Decodes token ids over an ONNX folder, without Python:
//
//   decode_folder FOLDER 464 6193 286
//
// ONNX Runtime is found in PARD_RT_ONNXRUNTIME or where the system's loader looks.
#include <cstdlib>
#include <iostream>
#include <memory>
#include <vector>

#include "pard/composed_executor.h"
#include "pard/decoder.h"
#include "pard/error.h"
#include "pard/onnx/onnx_model.h"

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: decode_folder FOLDER TOKEN_ID...\n";
    return 2;
  }
  try {
    std::vector<pard::Token> prompt;
    for (int i = 2; i < argc; ++i) {
      prompt.push_back(std::atoi(argv[i]));
    }
    const auto target = std::make_shared<pard::OnnxModel>(argv[1]);
    pard::GenerationParams params;
    params.max_new_tokens = 32;
    params.eos_token_ids = target->contract().eos_token_ids;
    pard::Decoder decoder(std::make_unique<pard::ComposedExecutor>(target));
    decoder.add(prompt, params, [](const pard::TokenEvent& event) {
      std::cout << event.token << ' ' << std::flush;
      return true;
    });
    decoder.run();
    std::cout << '\n';
  } catch (const pard::Error& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
