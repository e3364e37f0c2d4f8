#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace pard {

// What went wrong, what was expected, what was there instead, and what the user can do about it.
struct ErrorDetail {
  std::string problem;
  std::string expected;
  std::string actual;
  std::string remedy;
};

// Root of every error this library raises on purpose. Python's pard_rt.Error hierarchy mirrors it
// class by class.
class Error : public std::runtime_error {
 public:
  explicit Error(ErrorDetail detail)
      : std::runtime_error(detail.problem + ": expected " + detail.expected + ", got " +
                           detail.actual + ". " + detail.remedy),
        detail_(std::move(detail)) {}

  const ErrorDetail& detail() const noexcept { return detail_; }

 private:
  ErrorDetail detail_;
};

// A value the caller passed cannot be used: a prompt, a sampling parameter, a number of proposals.
class InvalidArgument : public Error {
 public:
  using Error::Error;
};

// A draft and a target that cannot work together: other vocabularies, no usable mask token.
class IncompatibleModels : public Error {
 public:
  using Error::Error;
};

// A Model failed in forward() or broke its contract. A foreign exception it threw is nested inside.
class ModelError : public Error {
 public:
  using Error::Error;
};

// A logits row that no token can be chosen from: it holds NaN or +inf, or nothing but -inf.
class LogitsError : public ModelError {
 public:
  using ModelError::ModelError;
};

// A model folder that cannot be opened: missing or truncated files, a contract that is no contract
// or that its graph does not keep.
class FolderError : public Error {
 public:
  using Error::Error;
};

// ONNX Runtime was not found, is too old, or lacks the execution provider asked for.
class RuntimeMissing : public Error {
 public:
  using Error::Error;
};

}  // namespace pard
