#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>

#include "error.h"
#include "model.h"

namespace pard {

// The same error, saying which row of which model and sequence it is about.
LogitsError locate(const LogitsError& error, const std::string& model, SequenceId sequence,
                   std::int64_t position);

// A Model, and the owner of its cached lengths: how many rows of each sequence hold keys and values
// of committed tokens. forward() writes rows but keeps none of them; keep() says which became good.
// So an exception between the two leaves every sequence where it was.
class CachedModel {
 public:
  // Throws InvalidArgument for a null model, ModelError for one whose info() makes no sense.
  explicit CachedModel(std::shared_ptr<Model> model);

  const ModelInfo& info() const { return info_; }

  // Rows of `sequence` known to be good; 0 for one never seen.
  std::int64_t cached_length(SequenceId sequence) const;

  bool is(const Model* model) const { return model_.get() == model; }

  // Model::forward, with the result's shape checked and foreign exceptions nested in a ModelError.
  // An item's past_length lies within what was kept or written before.
  LogitsView forward(std::span<const ForwardItem> batch);

  // Rows [0, length) are good from now on, all others void. `length` is at most what has been
  // written.
  void keep(SequenceId sequence, std::int64_t length);

  // The same, for as many of `length` rows as have been written.
  void keep_at_most(SequenceId sequence, std::int64_t length);

  void release(SequenceId sequence) noexcept;

 private:
  // kept <= written <= info().max_length
  struct Lengths {
    std::int64_t kept = 0;
    std::int64_t written = 0;
  };

  std::shared_ptr<Model> model_;
  ModelInfo info_;
  std::unordered_map<SequenceId, Lengths> lengths_;
};

}  // namespace pard
