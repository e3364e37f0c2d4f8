// Decodes token ids over an ONNX folder, without Python; examples/cpp_service does more of it.
//
//   decode_folder FOLDER 464 6193 286
//
// ONNX Runtime is found in PARD_RT_ONNXRUNTIME or where the system's loader looks.
#include <cstdlib>
#include <iostream>
#include <vector>

#include "pard/error.h"
#include "pard/generator.h"

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: decode_folder FOLDER TOKEN_ID...\n";
    return 2;
  }
  try {
    std::vector<pard::Token> prompt;
    for (int i = 2; i < argc; ++i) prompt.push_back(std::atoi(argv[i]));
    pard::Generator generator({.target = argv[1]});
    generator.generate(prompt, {.max_new_tokens = 32}, [](const pard::Piece& piece) {
      std::cout << piece.token << ' ' << std::flush;
      return true;
    });
    std::cout << '\n';
  } catch (const pard::Error& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
