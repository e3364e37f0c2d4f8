#include "kernel_choosing.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "pard/choose.h"
#include "pard/error.h"
#include "pard/noise.h"

namespace pard::gpu {

namespace {

// Where the parts for `rows` slots lie, in bytes:
//
//   sampling | lengths | target_tokens | chosen | bad_draft | arrived
//   written by the host  by the kernel, arrived being 0 between launches
struct SlotLayout {
  explicit SlotLayout(std::size_t rows)
      : lengths(rows * sizeof(SlotSampling)),
        target_tokens(lengths + rows * sizeof(std::int64_t)),
        chosen(target_tokens + 2 * rows * sizeof(std::int64_t)),
        bad_draft(chosen + rows * max_rows * sizeof(std::int32_t)),
        arrived(bad_draft + rows * sizeof(std::int32_t)),
        size(arrived + rows * sizeof(std::uint32_t)) {}

  std::size_t lengths, target_tokens, chosen, bad_draft, arrived, size;
};

}  // namespace

KernelChoosing::KernelChoosing(std::unique_ptr<KernelSet> kernels) : kernels_(std::move(kernels)) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) try_out(dtype);
}

void KernelChoosing::reserve(std::size_t rows) const {
  if (rows <= capacity_) return;
  capacity_ = 0;
  const SlotLayout layout(rows);
  slots_ = kernels_->allocate(layout.size);
  const std::vector<std::byte> zeros(layout.size);
  kernels_->write(slots_.get(), zeros.data(), zeros.size());
  staged_.resize(layout.target_tokens);
  chosen_.resize(rows * max_rows);
  capacity_ = rows;
}

void KernelChoosing::choose(const LogitsView& rows, std::span<const RowRequest> requests,
                            std::span<std::optional<Token>> tokens) const {
  const std::size_t count = requests.size();
  if (count == 0) return;
  reserve(count);
  const SlotLayout layout(capacity_);
  for (std::size_t i = 0; i < count; ++i) {
    const SlotSampling sampling = slot_sampling(*requests[i].sampling);
    const std::int64_t position = requests[i].position;
    std::memcpy(staged_.data() + i * sizeof(sampling), &sampling, sizeof(sampling));
    std::memcpy(staged_.data() + layout.lengths + i * sizeof(position), &position,
                sizeof(position));
  }
  kernels_->write(slots_.get(), staged_.data(), staged_.size());

  ChooseArgs args{};
  args.logits = rows.data;
  args.row_stride = rows.row_stride;
  args.vocab_size = static_cast<Token>(rows.vocab_size);
  args.dtype = static_cast<std::int32_t>(rows.dtype);
  args.num_rows = 1;
  args.sampling = part<SlotSampling>(0);
  args.lengths = part<std::int64_t>(layout.lengths);
  args.target_tokens = part<std::int64_t>(layout.target_tokens);
  args.chosen = part<std::int32_t>(layout.chosen);
  args.bad_draft = part<std::int32_t>(layout.bad_draft);
  args.arrived = part<std::uint32_t>(layout.arrived);
  kernels_->choose_and_verify(args, static_cast<int>(count), nullptr);

  kernels_->read(chosen_.data(), args.chosen, count * max_rows * sizeof(std::int32_t));
  for (std::size_t i = 0; i < count; ++i) {
    const Token token = chosen_[i * max_rows];
    tokens[i] = token < 0 ? std::nullopt : std::optional(token);
  }
}

void KernelChoosing::try_out(DType dtype) const {
  constexpr std::size_t num_rows = 8;
  constexpr std::int64_t vocab_size = 1003;
  // Bits of numbers between -2 and 2, of one float or two of 16 bits: these have many ties.
  std::vector<std::uint32_t> bits(num_rows * vocab_size);
  for (std::size_t i = 0; i < bits.size(); ++i) {
    const std::uint32_t random = noise::block(1, 0, static_cast<std::uint32_t>(i)).word[0];
    bits[i] = dtype == DType::f16    ? (random & 0x9FFF9FFFU) | 0x20002000U
              : dtype == DType::bf16 ? (random & 0x81FF81FFU) | 0x3E003E00U
                                     : (random & 0x81FFFFFFU) | 0x3E000000U;
  }
  std::array<SamplingParams, num_rows> sampling;
  std::array<RowRequest, num_rows> requests;
  std::array<std::optional<Token>, num_rows> tokens;
  for (std::size_t i = 0; i < num_rows; ++i) {
    sampling[i].temperature = i % 4 == 0 ? 0.0F : 0.7F;
    if (i % 4 == 2) sampling[i].top_k = 20;
    if (i % 4 == 3) sampling[i].top_p = 0.9F;
    if (i > 4) sampling[i].min_p = 0.01F;
    sampling[i].seed = i;
    requests[i] = {&sampling[i], static_cast<std::int64_t>(100 + i)};
  }
  const std::size_t bytes = num_rows * vocab_size * size_of(dtype);
  const std::shared_ptr<void> rows = kernels_->allocate(bytes);
  kernels_->write(rows.get(), bits.data(), bytes);
  choose({rows.get(), dtype, num_rows, vocab_size, vocab_size, this}, requests, tokens);

  const LogitsView on_host{bits.data(), dtype, num_rows, vocab_size, vocab_size};
  for (std::size_t i = 0; i < num_rows; ++i) {
    const LogitsRow row = on_host.row(static_cast<std::int64_t>(i));
    const Token expected = pard::choose(row, sampling[i], requests[i].position);
    if (tokens[i] == expected) continue;
    throw ModelError({"The device chooses another token than the host from the same row",
                      "token " + std::to_string(expected),
                      tokens[i] ? "token " + std::to_string(*tokens[i]) : "none",
                      "Report the card and its driver; choose on the host meanwhile."});
  }
}

}  // namespace pard::gpu
