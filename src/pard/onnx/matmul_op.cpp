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
  const auto rank =
      static_cast<std::size_t>(std::find(shape.begin(), shape.end(), absent) - shape.begin());
  run.require(rank > 0 && shape[rank - 1] == matrix.depth, "rows that do not fit the weights");
  std::int64_t rows = 1;
  for (std::size_t i = 0; i + 1 < rank; ++i) rows *= shape[i];
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

// What a node says and holds, checked.
class NodeReader {
 public:
  NodeReader(const ort::Api& api, const ort::KernelInfo* info) : api_(api), info_(info) {
    name_ =
        text([&](char* name, std::size_t* size) { return api_.get_node_name(info_, name, size); });
  }

  std::string output_name() const {
    return text(
        [&](char* name, std::size_t* size) { return api_.get_output_name(info_, 0, name, size); });
  }

  std::int64_t attribute(const char* name, std::int64_t otherwise) const {
    std::int64_t value = otherwise;
    ort::Status* status = api_.get_int_attribute(info_, name, &value);
    if (status == nullptr) return value;
    api_.release_status(status);
    return otherwise;
  }

  // Empty where the node does not have it.
  OpTensor constant(std::size_t index) const {
    int is_constant = 0;
    const ort::Value* value = nullptr;
    ort::Status* status = api_.get_constant_input(info_, index, &is_constant, &value);
    if (status != nullptr) {
      api_.release_status(status);
      return {};
    }
    return is_constant != 0 ? read_tensor(api_, value) : OpTensor{};
  }

  // The bytes of an input that has so many elements of one of these types.
  std::span<const std::byte> bytes(const char* what, const OpTensor& tensor,
                                   std::initializer_list<ort::ElementType> types,
                                   std::int64_t count) const {
    std::int64_t actual = 1;
    for (const std::int64_t size : tensor.shape) actual *= size == absent ? 1 : size;
    const bool fits = std::find(types.begin(), types.end(), tensor.type) != types.end();
    if (tensor.data == nullptr || !fits || actual != count) {
      fail(
          std::to_string(count) + " " + what + " as " + name_of(*types.begin()),
          tensor.data == nullptr ? "none" : std::to_string(actual) + " as " + name_of(tensor.type));
    }
    return {static_cast<const std::byte*>(tensor.data),
            static_cast<std::size_t>(count) * size_of(tensor.type)};
  }

  [[noreturn]] void fail(const std::string& expected, const std::string& actual) const {
    throw FolderError({"Weights of the node '" + name_ + "' do not fit its product", expected,
                       actual, "Copy or export the folder again."});
  }

 private:
  // What a function of the C API writes, which first says how long it is.
  template <class Get>
  std::string text(const Get& get) const {
    std::size_t size = 0;
    ort::Status* status = get(nullptr, &size);
    if (status != nullptr) api_.release_status(status);
    std::string written(size, '\0');
    check_status(api_, get(written.data(), &size));
    return written.c_str();
  }

  const ort::Api& api_;
  const ort::KernelInfo* info_;
  std::string name_;
};

std::unique_ptr<Product> read_product(const MatmulOp& op, const ort::KernelInfo* info) {
  using enum ort::ElementType;
  const NodeReader node(op.api, info);
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
  const std::int64_t columns = weights.num_columns;
  const std::int64_t blocks = weights.num_blocks();
  const OpTensor scales = node.constant(scales_input);
  weights.integers = node.bytes("integers", node.constant(integers_input), {u8},
                                columns * blocks * (weights.block * weights.bits / 8));
  const std::int64_t spans = weights.num_spans();
  if (const OpTensor factors = node.constant(scale_factors_input); factors.data != nullptr) {
    weights.scale_type = ScaleType::factored;
    weights.scales = node.bytes("scales", scales, {i8}, columns * blocks);
    weights.scale_factors = node.bytes("factors of scales", factors, {f16}, columns * spans);
  } else {
    weights.scales = node.bytes("scales", scales, {f32, f16}, columns * blocks);
    weights.scale_type = scales.type == f16 ? ScaleType::float16 : ScaleType::float32;
  }
  if (const OpTensor points = node.constant(zero_points_input); points.data != nullptr) {
    const std::int64_t bytes = weights.bits == 8 ? blocks : (blocks + 1) / 2;
    weights.zero_points = node.bytes("bytes of zero points", points, {u8}, columns * bytes);
  }
  if (const OpTensor minima = node.constant(minima_input); minima.data != nullptr) {
    if (!weights.zero_points.empty()) node.fail("minima or zero points", "both");
    weights.minima = node.bytes("minima", minima, {scales.type}, columns * blocks);
    if (weights.scale_type == ScaleType::factored) {
      weights.minimum_factors = node.bytes(
          "factors of minima", node.constant(minimum_factors_input), {f16}, columns * spans);
    }
  }
  auto kernel = std::make_unique<Product>(
      Product{.api = op.api, .op = op, .is_head = node.output_name() == op.logits});
  if (const OpTensor bias = node.constant(addends_input); bias.data != nullptr) {
    node.bytes("addends", bias, {f32}, columns);
    kernel->bias.assign(bias.floats(), bias.floats() + columns);
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
