#include "op_node.h"

#include <algorithm>

#include "pard/error.h"
#include "session.h"

namespace pard {

namespace {

// What a function of the C API writes, which first says how long it is.
template <class Get>
std::string text(const ort::Api& api, const Get& get) {
  std::size_t size = 0;
  ort::Status* status = get(nullptr, &size);
  if (status != nullptr) api.release_status(status);
  std::string written(size, '\0');
  check_status(api, get(written.data(), &size));
  return written.c_str();
}

}  // namespace

OpNode::OpNode(const ort::Api& api, const ort::KernelInfo* info) : api_(api), info_(info) {
  name_ = text(
      api_, [&](char* name, std::size_t* size) { return api_.get_node_name(info_, name, size); });
}

std::string OpNode::output_name() const {
  return text(api_, [&](char* name, std::size_t* size) {
    return api_.get_output_name(info_, 0, name, size);
  });
}

std::int64_t OpNode::attribute(const char* name, std::int64_t otherwise) const {
  std::int64_t value = otherwise;
  ort::Status* status = api_.get_int_attribute(info_, name, &value);
  if (status == nullptr) return value;
  api_.release_status(status);
  return otherwise;
}

OpTensor OpNode::constant(std::size_t index) const {
  int is_constant = 0;
  const ort::Value* value = nullptr;
  ort::Status* status = api_.get_constant_input(info_, index, &is_constant, &value);
  if (status != nullptr) {
    api_.release_status(status);
    return {};
  }
  return is_constant != 0 ? read_tensor(api_, value) : OpTensor{};
}

std::span<const std::byte> OpNode::bytes(const char* what, const OpTensor& tensor,
                                         std::initializer_list<ort::ElementType> types,
                                         std::int64_t count) const {
  const std::int64_t actual = tensor.data == nullptr ? 0 : tensor.count();
  const bool fits = std::find(types.begin(), types.end(), tensor.type) != types.end();
  if (tensor.data == nullptr || !fits || actual != count) {
    fail(std::to_string(count) + " " + what + " as " + name_of(*types.begin()),
         tensor.data == nullptr ? "none" : std::to_string(actual) + " as " + name_of(tensor.type));
  }
  return {static_cast<const std::byte*>(tensor.data),
          static_cast<std::size_t>(count) * size_of(tensor.type)};
}

void OpNode::read_blocks(BlockWeights& weights, const BlockInputs& inputs) const {
  using enum ort::ElementType;
  const std::int64_t columns = weights.num_columns;
  const std::int64_t blocks = weights.num_blocks();
  const std::int64_t spans = weights.num_spans();
  weights.integers = bytes("integers", constant(inputs.integers), {u8},
                           columns * blocks * (weights.block * weights.bits / 8));
  const OpTensor scales = constant(inputs.scales);
  if (const OpTensor factors = constant(inputs.scale_factors); factors.data != nullptr) {
    weights.scale_type = ScaleType::factored;
    weights.scales = bytes("scales", scales, {i8}, columns * blocks);
    weights.scale_factors = bytes("factors of scales", factors, {f16}, columns * spans);
  } else {
    weights.scales = bytes("scales", scales, {f32, f16}, columns * blocks);
    weights.scale_type = scales.type == f16 ? ScaleType::float16 : ScaleType::float32;
  }
  if (const OpTensor points = constant(inputs.zero_points); points.data != nullptr) {
    const std::int64_t size = weights.bits == 8 ? blocks : (blocks + 1) / 2;
    weights.zero_points = bytes("bytes of zero points", points, {u8}, columns * size);
  }
  const OpTensor minima = constant(inputs.minima);
  if (minima.data == nullptr) return;
  if (!weights.zero_points.empty()) fail("minima or zero points", "both");
  weights.minima = bytes("minima", minima, {scales.type}, columns * blocks);
  if (weights.scale_type == ScaleType::factored) {
    weights.minimum_factors =
        bytes("factors of minima", constant(inputs.minimum_factors), {f16}, columns * spans);
  }
}

void OpNode::fail(const std::string& expected, const std::string& actual) const {
  throw FolderError({"Weights of the node '" + name_ + "' do not fit its operator", expected,
                     actual, "Copy or export the folder again."});
}

}  // namespace pard
