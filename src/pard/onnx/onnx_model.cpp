#include "onnx_model.h"

#include <algorithm>
#include <array>
#include <bit>
#include <functional>
#include <limits>
#include <string_view>
#include <utility>

#include "attention_kernel.h"
#include "device_memory.h"
#include "pard/choose.h"
#include "pard/error.h"

namespace pard {

namespace {

// A prompt's rows per run where logits come for all of them: those are to stay below this.
constexpr std::size_t max_logits_bytes = std::size_t{64} << 20;
constexpr std::int64_t fewest_rows_per_run = 32;

constexpr std::array<std::int64_t, 11> static_rows = {1, 3, 5, 9, 13, 16, 24, 32, 64, 128, 256};

// Exact ones give the same row twice up to another order of summation; int4 and int8 kernels
// differ by what a rounded activation makes.
constexpr double exact_difference = 1e-3;
constexpr double quantized_difference = 0.2;
constexpr double no_difference_f32 = 1e-5;
constexpr double no_difference_f16 = 4e-3;

// Adds bytes to a digest.
void add_to(RowCounts::Digest& digest, const std::vector<std::byte>& bytes) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  digest = 31 * digest + std::hash<std::string_view>{}(text);
}

FolderContract open_contract(const std::filesystem::path& folder, const OnnxModelOptions& options) {
  FolderContract contract = read_folder(folder);
  check_provider(contract, options.session.provider);
  for (const char* op : {"DynamicQuantizeLinear", "DynamicQuantizeMatMul"}) {
    if (options.is_target && contract.file_summary.op_types.contains(op)) {
      throw ModelError({"Model '" + contract.name + "' cannot be a target",
                        "rows that do not depend on the tokens behind them",
                        "dynamic quantization (" + std::string(op) +
                            "), whose scale covers all rows, rejected ones included",
                        "Quantize the weights alone: int4 or int8."});
    }
  }
  if (options.max_length) {
    if (*options.max_length < 2 || *options.max_length > contract.max_length) {
      throw InvalidArgument(
          {"max_length cannot be used", "2 to " + std::to_string(contract.max_length),
           std::to_string(*options.max_length), "The folder of the model sets the limit."});
    }
    contract.max_length = *options.max_length;
  }
  return contract;
}

bool has_integer_weights(const FolderContract& contract) {
  return contract.weights == "int4" || contract.weights == "int8" || contract.weights == "gguf";
}

// ONNX Runtime's integer kernels round activations. The portable form's attention sums in an order
// that depends on where a sequence is cut, and such a kernel makes of that 1e-7 a hundredth of the
// largest logit.
SessionOptions session_options(const FolderContract& contract, const OnnxModelOptions& options) {
  SessionOptions session = options.session;
  session.dequantize_weights |= options.exact && options.is_target && session.provider == "cpu" &&
                                contract.form == GraphForm::portable &&
                                has_integer_weights(contract);
  session.own_attention =
      options.own_attention && session.provider == "cpu" && contract.form == GraphForm::gqa &&
      contract.file_summary.attention_is_plain && contract.head_dim <= AttentionRows::max_head_dim;
  session.own_matmul =
      options.own_matmul && session.provider == "cpu" && contract.form == GraphForm::gqa &&
      !contract.file_summary.weight_bits.empty() && contract.file_summary.products_are_plain;
  session.own_gather = options.own_matmul && session.provider == "cpu" &&
                       contract.form == GraphForm::gqa && contract.file_summary.has_gathers &&
                       contract.file_summary.gathers_are_plain;
  session.logits = contract.names.logits;
  return session;
}

// Whether attention runs by this library's kernel. Throws ModelError where it must and does not,
// and RuntimeMissing where ONNX Runtime's would see one key more than the model.
bool uses_own_attention(const FolderContract& contract, const OnnxModelOptions& options,
                        const OrtLibrary& library) {
  const bool own = session_options(contract, options).own_attention;
  if (contract.file_summary.attention_has_windows && !own && !library.is_at_least(24)) {
    throw RuntimeMissing({"Model '" + contract.name + "' needs a newer ONNX Runtime",
                          "version 1.24 or later, whose sliding windows count the row's own key",
                          "version " + library.version() + ", '" + library.path() + "'",
                          "Install it with: pip install -U onnxruntime."});
  }
  if (contract.requires_own_attention && !own) {
    throw ModelError(
        {"The attention of model '" + contract.name + "' runs only in pard-rt's kernel",
         "provider 'cpu' and own_attention = true",
         "provider '" + options.session.provider +
             "' and own_attention = " + (options.own_attention ? "true" : "false"),
         "ONNX Runtime's GroupQueryAttention refuses heads of this size. Open the "
         "folder on the CPU, or export the model with: pard-rt export --form "
         "portable."});
  }
  return own;
}

// Whether products run by this library's kernels. Throws ModelError where they must and do not, and
// RuntimeMissing where this version has no others: what it says itself names neither version nor
// weights.
bool uses_own_matmul(const FolderContract& contract, const OnnxModelOptions& options,
                     const OrtLibrary& library) {
  const SessionOptions session = session_options(contract, options);
  const OnnxFileSummary& summary = contract.file_summary;
  const bool gathers = session.own_gather || !summary.has_gathers;
  const bool multiplies = session.own_matmul || summary.weight_bits.empty();
  if (summary.products_are_ours && !(multiplies && gathers)) {
    throw ModelError(
        {"The products of model '" + contract.name + "' run only in pard-rt's kernels",
         "provider 'cpu', own_matmul = true, and every MatMulNBits and "
         "GatherBlockQuantized with constant weights, at accuracy_level 4",
         "provider '" + options.session.provider +
             "' and own_matmul = " + (options.own_matmul ? "true" : "false"),
         "Open the folder on the CPU, or export the model again for other providers."});
  }
  const auto require = [&](bool holds, int version, const char* reason) {
    if (holds || library.is_at_least(version)) return;
    throw RuntimeMissing({"Model '" + contract.name + "' needs a newer ONNX Runtime",
                          "version 1." + std::to_string(version) + " or later, " + reason,
                          "version " + library.version() + ", '" + library.path() + "'",
                          "Install it with: pip install -U onnxruntime."});
  };
  require(session.own_matmul || !summary.weight_bits.contains(8), 22,
          "whose MatMulNBits takes weights of 8 bits");
  require(session.own_gather || !summary.gathers_name_bits, 23,
          "whose GatherBlockQuantized knows how many bits numbers have");
  return session.own_matmul;
}

std::shared_ptr<const Memory> kv_memory(const std::shared_ptr<const OrtLibrary>& library,
                                        const OnnxModelOptions& options) {
  if (options.device_memory.value_or(options.session.provider != "cpu")) {
    return std::make_shared<DeviceMemory>(library, options.session);
  }
  return std::make_shared<HostMemory>(*library);
}

}  // namespace

OnnxModel::OnnxModel(const std::filesystem::path& folder, const OnnxModelOptions& options,
                     const OrtSearch& search)
    : OnnxModel(folder, options, OrtLibrary::open(search, options.session.provider)) {}

OnnxModel::OnnxModel(const std::filesystem::path& folder, const OnnxModelOptions& options,
                     std::shared_ptr<const OrtLibrary> library)
    : library_(std::move(library)),
      contract_(open_contract(folder, options)),
      provider_(options.session.provider),
      own_attention_(uses_own_attention(contract_, options, *library_)),
      own_matmul_(uses_own_matmul(contract_, options, *library_)),
      session_(library_, folder / contract_.graph, session_options(contract_, options)),
      types_{*contract_.kv_dtype, *contract_.logits_dtype},
      static_shapes_(options.static_shapes.value_or(options.session.provider == "migraphx")),
      is_target_(options.is_target),
      integer_kernels_(has_integer_weights(contract_) &&
                       !session_options(contract_, options).dequantize_weights),
      memory_(kv_memory(library_, options)),
      runner_(session_, contract_, types_, static_shapes_, memory_),
      logits_memory_(std::make_shared<HostMemory>(*library_)) {
  if (static_shapes_ && contract_.form != GraphForm::portable) {
    throw InvalidArgument({"Model '" + contract_.name + "' cannot run with static shapes",
                           "the portable form", "the gqa form",
                           "Export it with: pard-rt export --form portable."});
  }
  info_.name = contract_.name;
  info_.vocab_size = contract_.vocab_size;
  info_.max_length = contract_.max_length;
  info_.num_tokens = contract_.num_tokens;
  info_.head_tokens = contract_.head_tokens;
  info_.token_bytes = read_token_bytes(folder, contract_);
  if (!info_.token_bytes && options.token_bytes) {
    info_.token_bytes = options.token_bytes;
    if (!info_.num_tokens) info_.num_tokens = std::min(info_.vocab_size, info_.token_bytes->size());
  }

  max_rows_per_run_ = std::numeric_limits<std::int64_t>::max();
  if (contract_.names.num_logits.empty()) {
    const std::size_t row = static_cast<std::size_t>(info_.row_size()) * size_of(types_.logits);
    max_rows_per_run_ =
        std::max(fewest_rows_per_run, static_cast<std::int64_t>(max_logits_bytes / row));
  } else if (static_shapes_) {
    max_rows_per_run_ = static_rows.back();
  }
  // Elsewhere attention sums in an order that depends on where a sequence is cut.
  if (options.exact && is_target_ && contract_.form == GraphForm::gqa) {
    row_counts_ = measure_row_counts();
    if (row_counts_.unit() == 1) max_rows_per_run_ = 1;
    info_.max_length -= padding(1);
  }
  if (options.probe) {
    probe();
  }
}

RowCounts OnnxModel::measure_row_counts() {
  const auto forward = [this](std::int64_t past, std::int64_t rows) {
    std::vector<Token> tokens;
    for (std::int64_t i = past; i < past + rows; ++i) {
      tokens.push_back(static_cast<Token>((i * 7919 + 13) % info_.token_count()));
    }
    if (!measured_) measured_ = runner_.make_cache();
    reserve_logits(rows);
    run(*measured_, {.past_length = past, .tokens = tokens, .num_logits = rows}, 0);
    std::vector<RowCounts::Digest> all = digests(*measured_, past, past + rows);
    for (std::int64_t i = 0; i < rows; ++i) {
      add_to(all[static_cast<std::size_t>(i)], read_logits(i));
    }
    return all;
  };
  // Rounding to few bits hides other sums in some rows, so one row proves little there.
  const bool rounds = integer_kernels_ || types_.kv == DType::f16 || types_.logits == DType::f16;
  RowCounts counts(forward, contract_.max_length, rounds ? 8 : 1);
  if (!counts.exact()) measured_.reset();
  return counts;
}

// One for each row [begin, end) of a cache, over its keys and values.
std::vector<RowCounts::Digest> OnnxModel::digests(const SequenceCache& cache, std::int64_t begin,
                                                  std::int64_t end) const {
  const KvBuffer& buffer = cache.buffer;
  const KvShape& shape = buffer.shape();
  std::vector<RowCounts::Digest> all(static_cast<std::size_t>(end - begin));
  std::vector<std::byte> bytes(static_cast<std::size_t>(shape.head_dim) * shape.element_size);
  for (std::size_t part = 0; part < 2 * static_cast<std::size_t>(shape.num_layers); ++part) {
    for (std::int64_t row = begin; row < end; ++row) {
      for (std::int64_t head = 0; head < shape.num_heads; ++head) {
        buffer.memory().read(bytes.data(), buffer.part(part) + buffer.offset(row, head),
                             bytes.size());
        add_to(all[static_cast<std::size_t>(row - begin)], bytes);
      }
    }
  }
  return all;
}

std::vector<std::byte> OnnxModel::read_logits(std::int64_t row) const {
  std::vector<std::byte> bytes(static_cast<std::size_t>(info_.row_size()) * size_of(types_.logits));
  logits_memory_->read(bytes.data(), logits_row(row), bytes.size());
  return bytes;
}

ProbeReport OnnxModel::probe(std::int64_t max_rows) {
  if (max_rows == 0 && !exact()) max_rows = 2;
  const bool half = types_.kv == DType::f16 || types_.logits == DType::f16;
  const bool rough = half || integer_kernels_ || !is_target_;
  constexpr double unlimited = std::numeric_limits<double>::infinity();
  const double none = half ? no_difference_f16 : no_difference_f32;
  return probe_model(*this,
                     {.row_counts = rough ? quantized_difference : exact_difference,
                      .rewinding = is_target_ ? none : quantized_difference,
                      .rejected_rows = is_target_ ? none : unlimited},
                     max_rows);
}

void OnnxModel::choose_on(const std::function<std::shared_ptr<const LogitsDevice>()>& make) {
  if (dynamic_cast<const HostMemory*>(memory_.get()) != nullptr) {
    throw InvalidArgument({"Model '" + info_.name + "' cannot leave its logits on a device",
                           "keys and values in the device's memory", "in the host's",
                           "Open it with device_memory = true."});
  }
  memory_->allocate(1, true);  // which runs something on the device, in this thread
  logits_device_ = make();
  logits_memory_ = memory_;
  logits_ = {};
  logits_capacity_ = 0;
}

CachedRows OnnxModel::cached_rows(SequenceId sequence, std::int64_t layer,
                                  std::int64_t length) const {
  const auto found = caches_.find(sequence);
  const std::int64_t capacity = found == caches_.end() ? 0 : found->second.buffer.capacity();
  if (layer < 0 || layer >= contract_.num_layers || length < 0 || length > capacity) {
    throw InvalidArgument(
        {"Model '" + info_.name + "' has no such cached rows",
         "a layer below " + std::to_string(contract_.num_layers) + " and up to " +
             std::to_string(capacity) + " rows of sequence " + std::to_string(sequence),
         "layer " + std::to_string(layer) + " and " + std::to_string(length) + " rows",
         "Ask for rows that a forward has written."});
  }
  if (length == 0) {
    return {};
  }
  const KvBuffer& buffer = found->second.buffer;
  const KvShape& shape = buffer.shape();
  std::vector<std::byte> bytes(buffer.part_bytes());
  const auto copy_part = [&](std::size_t part) {
    buffer.memory().read(bytes.data(), buffer.part(part), bytes.size());
    std::vector<float> rows(static_cast<std::size_t>(length * shape.num_heads * shape.head_dim));
    float* next = rows.data();
    for (std::int64_t row = 0; row < length; ++row) {
      for (std::int64_t head = 0; head < shape.num_heads; ++head) {
        widen({bytes.data() + buffer.offset(row, head), types_.kv, shape.head_dim}, next);
        next += shape.head_dim;
      }
    }
    return rows;
  };
  const auto keys = 2 * static_cast<std::size_t>(layer);
  return {copy_part(keys), copy_part(keys + 1)};
}

void OnnxModel::check_item(const ForwardItem& item) const {
  const auto num_tokens = static_cast<std::int64_t>(item.tokens.size());
  if (num_tokens == 0 || item.past_length < 0 || item.num_rows < 0 || item.num_rows > num_tokens) {
    throw InvalidArgument({"A forward of model '" + info_.name + "' makes no sense",
                           "tokens, a past of 0 or more rows, and no more logits than tokens",
                           std::to_string(num_tokens) + " tokens, a past of " +
                               std::to_string(item.past_length) + " and " +
                               std::to_string(item.num_rows) + " rows",
                           "See Model::forward."});
  }
  if (item.past_length > info_.max_length - num_tokens) {
    throw InvalidArgument({"A sequence is too long for model '" + info_.name + "'",
                           "at most " + std::to_string(info_.max_length) + " rows",
                           std::to_string(item.past_length) + " + " + std::to_string(num_tokens),
                           "Shorten the prompt, or export with a larger max_length."});
  }
  if (item.past_length > 0 && !caches_.contains(item.sequence)) {
    throw InvalidArgument(
        {"Model '" + info_.name + "' has not seen sequence " + std::to_string(item.sequence),
         "a past of 0", std::to_string(item.past_length), "Feed a sequence from its first token."});
  }
  for (const Token token : item.tokens) {
    if (token < 0 || token >= info_.vocab_size) {
      throw InvalidArgument({"Model '" + info_.name + "' has no such token",
                             "an id from 0 to " + std::to_string(info_.vocab_size - 1),
                             std::to_string(token), "Use the tokenizer of this model."});
    }
  }
}

std::int64_t OnnxModel::padding(std::int64_t rows) {
  if (!static_shapes_) return row_counts_.padding(rows);
  const auto* size = std::lower_bound(static_rows.begin(), static_rows.end(), rows);
  return size != static_rows.end() ? *size - rows : 0;
}

// `asked`: how many of the last rows must have logits. The LM head has kernels for numbers of rows,
// too, and computes nothing for no rows: so a row nobody wants is asked for.
std::int64_t OnnxModel::num_logits_of(const GraphRun& run, std::int64_t asked) {
  if (contract_.names.num_logits.empty()) return run.num_rows();
  const std::int64_t rows = std::max<std::int64_t>(1, asked);
  return std::min(rows + padding(rows), run.num_rows());
}

void OnnxModel::plan(const ForwardItem& item) {
  const auto num_tokens = static_cast<std::int64_t>(item.tokens.size());
  const std::int64_t first_wanted = num_tokens - item.num_rows;
  for (std::int64_t begin = 0; begin < num_tokens;) {
    std::int64_t end = begin + std::min(max_rows_per_run_, num_tokens - begin);
    Planned planned;
    planned.sequence = item.sequence;
    planned.run.past_length = item.past_length + begin;
    planned.run.num_padding = padding(end - begin);
    if (row_counts_.exact() &&
        item.past_length + end + planned.run.num_padding > contract_.max_length) {
      end = begin + 1;  // info_.max_length leaves room to pad that
      planned.run.num_padding = padding(1);
    }
    planned.run.tokens =
        item.tokens.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
    planned.wanted = std::max<std::int64_t>(0, end - std::max(begin, first_wanted));

    // Padding comes behind the rows wanted, if any are.
    const std::int64_t asked = planned.wanted == 0 ? 0 : planned.wanted + planned.run.num_padding;
    planned.run.num_logits = num_logits_of(planned.run, asked);
    planned.lead = planned.run.unread_logits = planned.run.num_logits - asked;
    plan_.push_back(planned);
    begin = end;
  }
}

std::byte* OnnxModel::logits_row(std::int64_t row) const {
  return logits_.data() + static_cast<std::size_t>(row) *
                              static_cast<std::size_t>(info_.row_size()) * size_of(types_.logits);
}

void OnnxModel::reserve_logits(std::int64_t rows) {
  if (rows <= logits_capacity_) {
    return;
  }
  const std::int64_t capacity = std::max(rows, 2 * logits_capacity_);
  logits_capacity_ = 0;
  logits_ = {};  // room for the new ones
  logits_ = logits_memory_->allocate(
      static_cast<std::size_t>(capacity * info_.row_size()) * size_of(types_.logits), false);
  logits_capacity_ = capacity;
}

LogitsView OnnxModel::forward(std::span<const ForwardItem> batch) {
  plan_.clear();
  for (const ForwardItem& item : batch) {
    check_item(item);
    plan(item);
  }
  // A run writes its logits behind the rows of those before it. Rows nobody asked for that come
  // first stay in front of the view for the first run, and are closed up for later ones.
  std::int64_t next = 0;
  std::int64_t capacity = 1;
  std::int64_t view_begin = 0;
  for (Planned& planned : plan_) {
    planned.first_row = next;
    capacity = std::max(capacity, next + planned.run.num_logits);
    if (planned.wanted > 0 && next == 0) {
      view_begin = next = planned.lead;
      planned.lead = 0;
    }
    next += planned.wanted;
  }
  reserve_logits(capacity + row_counts_.unit());

  for (Planned& planned : plan_) {
    auto found = caches_.find(planned.sequence);
    if (found == caches_.end()) {
      found = caches_.emplace(planned.sequence, runner_.make_cache()).first;
    }
    run(found->second, planned.run, planned.first_row);
    if (!ends_as_short_ones(found->second, planned, capacity)) {
      max_rows_per_run_ = row_counts_.unit();
      return forward(batch);
    }
    if (planned.lead > 0) close_up(planned);
  }
  return {logits_row(view_begin), types_.logits,    next - view_begin,
          info_.row_size(),       info_.row_size(), logits_device_.get()};
}

void OnnxModel::run(SequenceCache& cache, GraphRun run, std::int64_t first_row) {
  run.logits = logits_row(first_row);
  run.logits_memory = logits_memory_.get();
  runner_.run(cache, run);
}

// RowCounts knows runs of up to `unit` rows, and supposes that longer ones end as those do. Where
// the first run of a size is to show that, its last row is computed again by itself.
bool OnnxModel::ends_as_short_ones(SequenceCache& cache, const Planned& planned,
                                   std::int64_t scratch_row) {
  const GraphRun& full = planned.run;
  const std::int64_t unit = row_counts_.unit();
  if (unit == 0 || full.num_rows() <= unit) return true;
  const std::pair size(std::bit_width(static_cast<std::uint64_t>(full.num_rows())),
                       full.num_rows() % unit);
  if (known_sizes_.contains(size)) return true;

  const std::int64_t end = full.past_length + static_cast<std::int64_t>(full.tokens.size());
  const auto digest = [&](std::int64_t logits) {
    RowCounts::Digest bits = digests(cache, end - 1, end).front();
    if (planned.wanted > 0) add_to(bits, read_logits(logits));
    return bits;
  };
  const RowCounts::Digest expected =
      digest(planned.first_row + full.num_logits - full.num_padding - 1);
  const std::int64_t num_padding = padding(1);
  run(cache,
      {.past_length = end - 1,
       .tokens = full.tokens.last(1),
       .num_padding = num_padding,
       .num_logits = 1 + num_padding},
      scratch_row);
  const bool same = digest(scratch_row) == expected;
  if (same) known_sizes_.insert(size);
  return same;
}

// Moves the wanted rows to the front of the run's, a piece at a time that does not overlap.
void OnnxModel::close_up(const Planned& planned) const {
  for (std::int64_t done = 0; done < planned.wanted; done += planned.lead) {
    const std::int64_t count = std::min(planned.lead, planned.wanted - done);
    const std::int64_t to = planned.first_row + done;
    logits_memory_->copy(logits_row(to), logits_row(to + planned.lead),
                         static_cast<std::size_t>(logits_row(count) - logits_row(0)));
  }
}

}  // namespace pard
