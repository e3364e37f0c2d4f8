#include "matmul_op.h"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "matmul_kernel.h"
#include "op_node.h"
#include "op_run.h"
#include "packed_weights.h"
#include "pard/error.h"
#include "session.h"

namespace pard {

namespace {

// A task computes as many columns as this many bytes of weights hold, at least: smaller ones cost
// more to hand out than they take.
constexpr std::size_t task_bytes = 1 << 16;
constexpr std::int64_t worth_sharing = 1 << 17;  // multiplications

enum ProductInput : std::size_t {
  rows_input,         // float32 [.., K]
  integers_input,     // uint8 [N, blocks, block * bits / 8]
  scales_input,       // float32, float16 or, with factors, int8 [N * blocks]
  zero_points_input,  // uint8, packed like the integers
  order_input,        // g_idx: never given
  addends_input,      // float32 [N]
  // Inputs of ours:
  minima_input,           // as the scales
  scale_factors_input,    // float16 [N * spans]
  minimum_factors_input,  // the same
};
static_assert(minima_input == first_own_matmul_input);
static_assert(minimum_factors_input + 1 == matmul_op_inputs);

// A node of a graph.
struct Product {
  const ort::Api& api;
  const MatmulOp& op;
  bool is_head = false;  // it computes logits
  const MatmulKernel& kernel = matmul_kernel();
  std::shared_ptr<const PackedWeights> weights{};
  std::vector<float> bias{};

  void compute(ort::KernelContext* context) const;
};

void Product::compute(ort::KernelContext* context) const {
  const OpRun run(api, context);
  const PackedMatrix& matrix = weights->matrix();
  const OpTensor input = run.input(rows_input);
  OpShape shape = input.shape;
  const std::size_t rank = input.rank();
  run.require(rank > 0 && shape[rank - 1] == matrix.depth, "rows that do not fit the weights");
  std::int64_t rows = input.count() / matrix.depth;
  shape[rank - 1] = matrix.num_columns;
  float* output = run.output(0, std::span(shape.data(), rank));
  const float* first = input.floats();
  if (is_head) {
    const std::int64_t unread = std::min(op.unread_logits, rows);
    first += unread * matrix.depth;
    output += unread * matrix.num_columns;
    rows -= unread;
  }
  if (rows == 0) return;

  // Rows go into panels of nearly the same size, each rounded once for all columns.
  const std::int64_t num_panels = (rows + kernel.most_rows - 1) / kernel.most_rows;
  const auto first_row = [&](std::int64_t panel) { return rows * panel / num_panels; };
  const std::size_t row_bytes = matrix.row_bytes();
  thread_local std::vector<std::byte> panels;
  panels.resize(std::max(panels.size(), static_cast<std::size_t>(rows) * row_bytes));
  std::byte* const rounded = panels.data();
  const auto panel_at = [&](std::int64_t panel) {
    return rounded + static_cast<std::size_t>(first_row(panel)) * row_bytes;
  };
  const auto count_of = [&](std::int64_t panel) {
    return static_cast<int>(first_row(panel + 1) - first_row(panel));
  };
  run.for_each(static_cast<std::size_t>(num_panels), num_panels > 1, [&](std::size_t index) {
    const auto panel = static_cast<std::int64_t>(index);
    kernel.round_rows(matrix, first + first_row(panel) * matrix.depth, matrix.depth,
                      count_of(panel), panel_at(panel));
  });

  const std::size_t tiles_per_task = std::max<std::size_t>(1, task_bytes / matrix.tile_bytes());
  const auto num_tiles = static_cast<std::size_t>(matrix.num_tiles());
  const std::size_t num_tasks = (num_tiles + tiles_per_task - 1) / tiles_per_task;
  const bool parallel = rows * matrix.num_columns * matrix.depth > worth_sharing;
  run.for_each(num_tasks, parallel && num_tasks > 1, [&](std::size_t task) {
    const std::size_t end = std::min(num_tiles, (task + 1) * tiles_per_task);
    for (std::size_t tile = task * tiles_per_task; tile < end; ++tile) {
      for (std::int64_t panel = 0; panel < num_panels; ++panel) {
        kernel.multiply(matrix, static_cast<std::int64_t>(tile), panel_at(panel), count_of(panel),
                        bias.empty() ? nullptr : bias.data(),
                        output + first_row(panel) * matrix.num_columns, matrix.num_columns);
      }
    }
  });
}

std::unique_ptr<Product> read_product(const MatmulOp& op, const ort::KernelInfo* info) {
  const OpNode node(op.api, info);
  BlockWeights weights{.num_columns = node.attribute("N", 0),
                       .depth = node.attribute("K", 0),
                       .bits = static_cast<int>(node.attribute("bits", 4)),
                       .block = static_cast<int>(node.attribute("block_size", 0))};
  constexpr std::int64_t most = std::int64_t{1} << 31;
  if (weights.num_columns <= 0 || weights.depth <= 0 || weights.num_columns >= most ||
      weights.depth >= most) {
    node.fail("N and K of at least 1",
              std::to_string(weights.num_columns) + " and " + std::to_string(weights.depth));
  }
  node.read_blocks(weights, {.integers = integers_input,
                             .scales = scales_input,
                             .zero_points = zero_points_input,
                             .minima = minima_input,
                             .scale_factors = scale_factors_input,
                             .minimum_factors = minimum_factors_input});
  auto kernel = std::make_unique<Product>(
      Product{.api = op.api, .op = op, .is_head = node.output_name() == op.logits});
  if (const OpTensor bias = node.constant(addends_input); bias.data != nullptr) {
    node.bytes("addends", bias, {ort::ElementType::f32}, weights.num_columns);
    kernel->bias.assign(bias.floats(), bias.floats() + weights.num_columns);
  }
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  try {
    kernel->weights =
        PackedWeights::make(weights, kernel->kernel, op.threads > 0 ? op.threads : cores);
  } catch (const std::invalid_argument& error) {
    node.fail("finite numbers", error.what());
  }
  return kernel;
}

}  // namespace

MatmulOp::MatmulOp(const ort::Api& its_api, int its_threads, std::string its_logits)
    : OwnOp(its_api), threads(its_threads), logits(std::move(its_logits)) {
  using ort::ElementType;
  make_kernels<MatmulOp, read_product>(*this);
  get_name = [](const CustomOp*) { return "MatMulNBits"; };
  get_input_count = [](const CustomOp*) { return matmul_op_inputs; };
  get_input_type = [](const CustomOp*, std::size_t index) {
    if (index == integers_input || index == zero_points_input) return ElementType::u8;
    if (index == order_input) return ElementType::i32;
    if (index == rows_input || index == addends_input) return ElementType::f32;
    return index > minima_input ? ElementType::f16 : ElementType::unspecified;
  };
  get_input_presence = [](const CustomOp*, std::size_t index) {
    return index > scales_input ? Presence::optional : Presence::required;
  };
  get_output_count = [](const CustomOp*) -> std::size_t { return 1; };
}

}  // namespace pard
