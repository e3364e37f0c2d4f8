#pragma once

#include <chrono>

#include "stats.h"

namespace pard {

// Adds the time between its construction and its destruction to a total.
class Stopwatch {
 public:
  explicit Stopwatch(Duration& total) : total_(total) {}
  ~Stopwatch() { total_ += std::chrono::steady_clock::now() - start_; }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  Duration& total_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace pard
