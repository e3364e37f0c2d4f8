#include "gather_op.h"

#include <memory>
#include <span>
#include <stdexcept>
#include <string>

#include "block_weights.h"
#include "op_node.h"

namespace pard {

namespace {

constexpr std::int64_t shared_reads = 1 << 16;  // numbers that are worth several threads

struct GatherInput {
  enum : std::size_t {
    table,        // uint8 [N, K * bits / 8], or the same with blocks as a dimension
    ids,          // int32 or int64, of any shape
    scales,       // float32, float16 or, with factors, int8 [N, blocks]
    zero_points,  // uint8, packed like the table
    // Inputs of ours:
    minima,           // as the scales
    scale_factors,    // float16 [N, spans]
    minimum_factors,  // the same
  };
};
static_assert(GatherInput::minima == first_own_gather_input);
static_assert(GatherInput::minimum_factors + 1 == gather_op_inputs);

// A node of a graph.
struct Gather {
  const ort::Api& api;
  BlockWeights table{};

  void compute(ort::KernelContext* context) const;
};

void Gather::compute(ort::KernelContext* context) const {
  const OpRun run(api, context);
  const OpTensor ids = run.input(GatherInput::ids);
  OpShape shape = ids.shape;
  const std::size_t rank = ids.rank();
  run.require(rank < shape.size(), "ids of more dimensions than they may have");
  run.require(ids.type == ort::ElementType::i32 || ids.type == ort::ElementType::i64,
              "ids that are neither int32 nor int64");
  shape[rank] = table.depth;
  float* output = run.output(0, std::span(shape.data(), rank + 1));
  const std::int64_t count = ids.count();
  const auto id_at = [&](std::int64_t i) {
    return ids.type == ort::ElementType::i32 ? static_cast<const std::int32_t*>(ids.data)[i]
                                             : static_cast<const std::int64_t*>(ids.data)[i];
  };
  for (std::int64_t i = 0; i < count; ++i) {
    run.require(id_at(i) >= 0 && id_at(i) < table.num_columns, "a token id outside the table");
  }
  run.for_each(static_cast<std::size_t>(count), count * table.depth > shared_reads,
               [&](std::size_t index) {
                 const auto i = static_cast<std::int64_t>(index);
                 table.read_column(id_at(i), output + i * table.depth);
               });
}

std::unique_ptr<Gather> read_gather(const GatherOp& op, const ort::KernelInfo* info) {
  const OpNode node(op.api, info);
  const OpTensor integers = node.constant(GatherInput::table);
  const auto bits = static_cast<int>(node.attribute("bits", 4));
  const auto block = static_cast<int>(node.attribute("block_size", 128));
  if ((bits != 4 && bits != 8) || block < 16) {
    node.fail("4 or 8 bits, and blocks of 16 weights or more",
              std::to_string(bits) + " bits, and blocks of " + std::to_string(block));
  }
  const std::int64_t rows = integers.data == nullptr ? 0 : integers.shape.front();
  if (rows <= 0 || integers.count() <= 0) node.fail("a table with rows", "none");
  auto kernel = std::make_unique<Gather>(Gather{.api = op.api});
  kernel->table = {.num_columns = rows,
                   .depth = integers.count() / rows * 8 / bits,
                   .bits = bits,
                   .block = block};
  node.read_blocks(kernel->table, {.integers = GatherInput::table,
                                   .scales = GatherInput::scales,
                                   .zero_points = GatherInput::zero_points,
                                   .minima = GatherInput::minima,
                                   .scale_factors = GatherInput::scale_factors,
                                   .minimum_factors = GatherInput::minimum_factors});
  try {
    kernel->table.stored_type(op.threads);
  } catch (const std::invalid_argument& error) {
    node.fail("finite numbers", error.what());
  }
  return kernel;
}

}  // namespace

GatherOp::GatherOp(const ort::Api& its_api, int its_threads)
    : OwnOp(its_api), threads(its_threads) {
  using ort::ElementType;
  make_kernels<GatherOp, read_gather>(*this);
  get_name = [](const CustomOp*) { return "GatherBlockQuantized"; };
  get_input_count = [](const CustomOp*) { return gather_op_inputs; };
  get_input_type = [](const CustomOp*, std::size_t index) {
    if (index == GatherInput::table || index == GatherInput::zero_points) return ElementType::u8;
    return index > GatherInput::minima ? ElementType::f16 : ElementType::unspecified;
  };
  get_input_presence = [](const CustomOp*, std::size_t index) {
    return index > GatherInput::scales ? Presence::optional : Presence::required;
  };
  get_output_count = [](const CustomOp*) -> std::size_t { return 1; };
}

}  // namespace pard
