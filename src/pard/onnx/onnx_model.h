#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "folder.h"
#include "graph_runner.h"
#include "ort_api.h"
#include "pard/logits_device.h"
#include "pard/model.h"
#include "pard/probe.h"
#include "row_counts.h"
#include "session.h"

namespace pard {

struct OnnxModelOptions {
  SessionOptions session;

  // Rows one sequence may have; absent: what the folder says, which is also the most.
  std::optional<std::int64_t> max_length;

  // A target's row gets the same bits whether it comes alone or among others: numbers of rows that
  // the kernels compute otherwise are padded (row_counts.h), as far as that helps: see exact(). A
  // target of the portable form with integer weights runs on the CPU with floats, at their cost.
  bool exact = true;

  // GroupQueryAttention on the CPU by this library's kernel (attention_op.h), as far as it computes
  // what the graph asks for; false: by ONNX Runtime's.
  bool own_attention = true;

  // MatMulNBits likewise, by matmul_op.h.
  bool own_matmul = true;

  // Rows and pasts of few sizes, the rest padded or masked, for providers that compile a graph for
  // every shape; portable form only. Absent: for migraphx.
  std::optional<bool> static_shapes;

  // Keys and values in memory of the provider's device. Absent: wherever it is not the CPU.
  std::optional<bool> device_memory;

  // What the token ids stand for, for a folder without token_bytes.bin.
  std::shared_ptr<const TokenBytes> token_bytes{};

  bool is_target = true;  // refuses what a draft may do: let a rejected token change other rows
  bool probe = true;      // try the graph once on opening; costs a handful of small forwards
};

// The first rows of one layer's cache, whatever the form: both [length, kv heads, head size].
struct CachedRows {
  std::vector<float> keys;  // after rotation
  std::vector<float> values;
};

// A Model over an ONNX folder (docs/onnx-folder.md), on any provider of ONNX Runtime. Sequences of
// a batch run one after the other. Logits come back in host memory, but for choose_on().
class OnnxModel final : public Model {
 public:
  // Throws FolderError for a folder that cannot be opened, RuntimeMissing where there is no ONNX
  // Runtime for it, InvalidArgument for options out of range, ModelError for a graph that ONNX
  // Runtime refuses or that the probe finds unfit.
  explicit OnnxModel(const std::filesystem::path& folder, const OnnxModelOptions& options = {},
                     const OrtSearch& search = {});
  OnnxModel(const std::filesystem::path& folder, const OnnxModelOptions& options,
            std::shared_ptr<const OrtLibrary> library);
  OnnxModel(const OnnxModel&) = delete;
  OnnxModel& operator=(const OnnxModel&) = delete;

  const ModelInfo& info() const override { return info_; }
  LogitsView forward(std::span<const ForwardItem> batch) override;
  void release(SequenceId sequence) noexcept override { caches_.erase(sequence); }

  // What the folder says: mask token, end-of-sequence ids, ...
  const FolderContract& contract() const { return contract_; }
  const OrtLibrary& library() const { return *library_; }

  // True where attention is computed by this library's kernel.
  bool own_attention() const { return own_attention_; }
  bool own_matmul() const { return own_matmul_; }

  // True where a row has the same bits in any company, tried on this machine: a target of the gqa
  // form, opened with options.exact. Speculative decoding then gives plain decoding's text bit for
  // bit. False: within rounding.
  bool exact() const { return row_counts_.exact(); }

  // The rows that a forward of so many is padded by, to be exact. A number of rows that was not
  // asked for before costs some forwards. Padding of single rows is taken off info().max_length.
  std::int64_t padding(std::int64_t rows);

  // With static shapes: the shapes the graph has run in so far. A provider that compiles for each
  // has done so as often.
  std::size_t num_shapes() const { return runner_.num_shapes(); }

  const std::string& provider() const { return provider_; }

  // From now on logits stay in the device's memory, where keys and values lie already, and what
  // `make` returns chooses from them; it is called with the provider's device the current one.
  // Throws InvalidArgument where keys and values lie in the host's memory, and what `make` throws.
  void choose_on(const std::function<std::shared_ptr<const LogitsDevice>()>& make);

  // Tries the graph: see ProbeReport. Throws ModelError where it is unfit. Sequences in use are not
  // touched. `max_rows`: 0 leaves out numbers of rows where opening has compared them bit for bit.
  ProbeReport probe(std::int64_t max_rows = 0);

  // Copies what is cached for a sequence, for tests and debugging. Which rows are good is the
  // caller's to know, as in forward(). Throws InvalidArgument for a layer or rows that are not
  // there.
  CachedRows cached_rows(SequenceId sequence, std::int64_t layer, std::int64_t length) const;

 private:
  // A run, and which of its logits rows were asked for: [lead, lead + wanted).
  struct Planned {
    SequenceId sequence = 0;
    GraphRun run;
    std::int64_t wanted = 0;
    std::int64_t lead = 0;
    std::int64_t first_row = 0;  // of the logits buffer, where the run writes
  };

  void check_item(const ForwardItem& item) const;
  void plan(const ForwardItem& item);
  std::int64_t num_logits_of(const GraphRun& run, std::int64_t asked);
  void run(SequenceCache& cache, GraphRun run, std::int64_t first_row);
  RowCounts measure_row_counts();
  std::vector<RowCounts::Digest> digests(const SequenceCache& cache, std::int64_t begin,
                                         std::int64_t end) const;
  std::vector<std::byte> read_logits(std::int64_t row) const;
  bool ends_as_short_ones(SequenceCache& cache, const Planned& planned, std::int64_t scratch_row);
  void reserve_logits(std::int64_t rows);
  std::byte* logits_row(std::int64_t row) const;
  void close_up(const Planned& planned) const;

  std::shared_ptr<const OrtLibrary> library_;
  FolderContract contract_;
  std::string provider_;
  bool own_attention_ = false;
  bool own_matmul_ = false;
  Session session_;
  GraphTypes types_;
  ModelInfo info_;
  bool static_shapes_ = false;
  bool is_target_ = true;
  bool integer_kernels_ = false;
  std::int64_t max_rows_per_run_ = 0;
  std::shared_ptr<const Memory> memory_;  // of keys and values
  GraphRunner runner_;
  std::unordered_map<SequenceId, SequenceCache> caches_;
  std::optional<SequenceCache> measured_;  // what row_counts_ runs on
  RowCounts row_counts_;
  std::set<std::pair<int, std::int64_t>> known_sizes_;  // of runs longer than its unit

  // Buffers of a forward, kept between them.
  std::vector<Planned> plan_;
  std::shared_ptr<const Memory> logits_memory_;
  std::shared_ptr<const LogitsDevice> logits_device_;  // null: the host chooses
  MemoryBlock logits_;
  std::int64_t logits_capacity_ = 0;
};

}  // namespace pard
