// Serves token requests, one a line, decoding together what is there at a time:
//
//   cpp_service TARGET [DRAFT [NUM_SPECULATIVE_TOKENS]]
//
//   in    max_new_tokens temperature seed id id id ...
//   out   LINE: id id id ...    when the request on that line of the input is done
//         LINE text: ...        where the target's folder spells its tokens; line breaks are spaces
//         LINE error: ...       instead of both
#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <exception>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <sstream>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "pard/error.h"
#include "pard/generator.h"

namespace {

// Reads standard input on a thread of its own, so that no round waits for a line.
class LineReader {
 public:
  // The lines that have come. `wait`: at least one, or none at the end of the input.
  std::vector<std::string> take(bool wait) {
    std::unique_lock lock(mutex_);
    if (wait) changed_.wait(lock, [this] { return !lines_.empty() || ended_; });
    return std::exchange(lines_, {});
  }

 private:
  void read() {
    for (std::string line; std::getline(std::cin, line);) {
      const std::lock_guard lock(mutex_);
      lines_.push_back(std::move(line));
      changed_.notify_one();
    }
    const std::lock_guard lock(mutex_);
    ended_ = true;
    changed_.notify_one();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> lines_;
  bool ended_ = false;
  std::jthread thread_{[this] { read(); }};  // last: it uses the others
};

// A word as a number, all of it and in range.
template <class Number>
void parse(const std::string& word, Number& number, const char* problem, const char* expected) {
  const char* end = word.data() + word.size();
  const auto [stop, error] = std::from_chars(word.data(), end, number);
  if (error != std::errc() || stop != end) {
    throw pard::InvalidArgument({problem, expected, "'" + word + "'", "Send numbers only."});
  }
}

// The next word of a request; false at the end of the line.
template <class Number>
bool read(std::istringstream& words, Number& number) {
  std::string word;
  if (!(words >> word)) return false;
  parse(word, number, "The line is no request", "max_new_tokens temperature seed id id ...");
  return true;
}

std::shared_ptr<pard::Sequence> submit(pard::Generator& generator, const std::string& line) {
  std::istringstream words(line);
  pard::GenerationParams params;
  read(words, params.max_new_tokens) && read(words, params.sampling.temperature) &&
      read(words, params.sampling.seed);
  std::vector<pard::Token> prompt;
  for (pard::Token token = 0; read(words, token);) prompt.push_back(token);
  return generator.submit(std::move(prompt), params);
}

void answer(int number, const pard::Output& output) {
  std::cout << number << ':';
  for (const pard::Token token : output.tokens) std::cout << ' ' << token;
  if (output.text) {
    std::string text = *output.text;
    std::ranges::replace(text, '\n', ' ');
    std::cout << '\n' << number << " text: " << text;
  }
  std::cout << std::endl;
}

void answer(int number, const std::string& error) {
  std::cout << number << " error: " << error << std::endl;
}

void serve(pard::Generator& generator) {
  LineReader reader;
  std::map<int, std::shared_ptr<pard::Sequence>> running;  // by the number of its line
  for (int number = 0;;) {
    const std::vector<std::string> lines = reader.take(running.empty());
    if (lines.empty() && running.empty()) return;
    for (const std::string& line : lines) {
      ++number;
      try {
        running.emplace(number, submit(generator, line));
      } catch (const std::exception& error) {
        answer(number, error.what());
      }
    }
    std::optional<std::string> failure;
    try {
      generator.step();
    } catch (const std::exception& error) {
      failure = error.what();
    }
    std::erase_if(running, [&](const auto& entry) {
      if (!entry.second->finished()) return false;
      answer(entry.first, generator.output_of(*entry.second));
      return true;
    });
    if (!failure) continue;
    for (const auto& [number_of, sequence] : running) {  // which of them failed is not told
      sequence->cancel();
      answer(number_of, *failure);
    }
    running.clear();
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 4) {
    std::cerr << "usage: cpp_service TARGET [DRAFT [NUM_SPECULATIVE_TOKENS]]\n";
    return 2;
  }
  try {
    pard::GeneratorOptions options{.target = argv[1]};
    if (argc > 2) options.draft = argv[2];
    if (argc > 3) {
      parse(argv[3], options.decoder.num_speculative_tokens.emplace(),
            "NUM_SPECULATIVE_TOKENS is no number", "0..64");
    }
    pard::Generator generator(options);
    serve(generator);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
