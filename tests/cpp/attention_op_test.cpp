// The operator of attention over a stand-in for ONNX Runtime: rows alone and together, on several
// threads, and what is given to them.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "pard/onnx/attention_kernel.h"
#include "pard/onnx/attention_op.h"

namespace pard {
namespace {

struct Tensor {
  std::vector<std::int64_t> shape;
  void* data = nullptr;
  ort::ElementType type = ort::ElementType::f32;
};

// What the operator sees of ONNX Runtime. Tasks run on `threads` threads, the last task first.
struct Runtime {
  std::map<std::string, float> attributes;
  std::vector<const Tensor*> inputs = std::vector<const Tensor*>(attention_op_inputs);
  std::vector<Tensor> outputs = std::vector<Tensor>(attention_op_outputs);
  std::size_t threads = 1;
  std::vector<std::size_t> tasks;  // of each call of parallel_for
};

template <class To, class From>
To* as(From* from) {
  return reinterpret_cast<To*>(const_cast<std::remove_const_t<From>*>(from));
}

ort::Api runtime_api() {
  ort::Api api{};
  api.create_status = [](ort::ErrorCode, const char* message) {
    return as<ort::Status>(new std::string(message));
  };
  api.get_error_message = [](const ort::Status* status) {
    return as<const std::string>(status)->c_str();
  };
  api.release_status = [](ort::Status* status) { delete as<std::string>(status); };
  api.get_int_attribute = [](const ort::KernelInfo* info, const char* name, std::int64_t* value) {
    const auto& attributes = as<Runtime>(info)->attributes;
    if (attributes.contains(name)) *value = static_cast<std::int64_t>(attributes.at(name));
    return static_cast<ort::Status*>(nullptr);
  };
  api.get_float_attribute = [](const ort::KernelInfo* info, const char* name, float* value) {
    const auto& attributes = as<Runtime>(info)->attributes;
    if (attributes.contains(name)) *value = attributes.at(name);
    return static_cast<ort::Status*>(nullptr);
  };
  api.get_kernel_input = [](const ort::KernelContext* context, std::size_t i,
                            const ort::Value** value) {
    *value = as<const ort::Value>(as<Runtime>(context)->inputs.at(i));
    return static_cast<ort::Status*>(nullptr);
  };
  api.get_kernel_output = [](ort::KernelContext* context, std::size_t i, const std::int64_t*,
                             std::size_t, ort::Value** value) {
    *value = as<ort::Value>(&as<Runtime>(context)->outputs.at(i));
    return static_cast<ort::Status*>(nullptr);
  };
  api.get_tensor_info = [](const ort::Value* value, ort::TensorInfo** info) {
    *info = as<ort::TensorInfo>(value);
    return static_cast<ort::Status*>(nullptr);
  };
  api.release_tensor_info = [](ort::TensorInfo*) {};
  api.get_dimensions_count = [](const ort::TensorInfo* info, std::size_t* count) {
    *count = as<Tensor>(info)->shape.size();
    return static_cast<ort::Status*>(nullptr);
  };
  api.get_dimensions = [](const ort::TensorInfo* info, std::int64_t* shape, std::size_t) {
    std::copy(as<Tensor>(info)->shape.begin(), as<Tensor>(info)->shape.end(), shape);
    return static_cast<ort::Status*>(nullptr);
  };
  api.get_element_type = [](const ort::TensorInfo* info, ort::ElementType* type) {
    *type = as<Tensor>(info)->type;
    return static_cast<ort::Status*>(nullptr);
  };
  api.get_tensor_data = [](ort::Value* value, void** data) {
    *data = as<Tensor>(value)->data;
    return static_cast<ort::Status*>(nullptr);
  };
  api.parallel_for = [](const ort::KernelContext* context, void (*task)(void*, std::size_t),
                        std::size_t count, std::size_t, void* data) {
    auto& runtime = *as<Runtime>(context);
    runtime.tasks.push_back(count);
    std::atomic<std::size_t> left{count};
    const auto work = [&] {
      for (std::size_t i = left--; i > 0 && i <= count; i = left--) task(data, i - 1);
    };
    std::vector<std::thread> others;
    while (others.size() + 1 < runtime.threads) others.emplace_back(work);
    work();
    for (std::thread& other : others) other.join();
    return static_cast<ort::Status*>(nullptr);
  };
  return api;
}

struct NodeShape {
  std::int64_t heads = 14;
  std::int64_t kv_heads = 2;
  std::int64_t dim = 64;
  std::int64_t length = 0;  // of the text
  std::int64_t window = 0;
  bool has_sinks = false;
};

// A text whose rows are fed to the operator, as many at a time as one likes.
class NodeText {
 public:
  explicit NodeText(const NodeShape& shape)
      : shape_(shape), width_((shape.heads + 2 * shape.kv_heads) * shape.dim) {
    std::mt19937 generator(3);
    std::normal_distribution<float> normal(0, 1.5F);
    rows_.resize(static_cast<std::size_t>(shape.length * width_));
    sinks_.resize(static_cast<std::size_t>(shape.heads));
    for (auto* numbers : {&rows_, &sinks_}) {
      std::generate(numbers->begin(), numbers->end(), [&] { return normal(generator); });
    }
    const auto size = static_cast<std::size_t>(shape.kv_heads * shape.length * shape.dim);
    for (auto* cache : {&keys_, &values_}) cache->assign(size, std::nanf(""));
    runtime.attributes = {{"num_heads", static_cast<float>(shape.heads)},
                          {"kv_num_heads", static_cast<float>(shape.kv_heads)},
                          {"local_window_size", static_cast<float>(shape.window)}};
  }

  // The output of rows [past, past + count).
  std::vector<float> attend(std::int64_t past, std::int64_t count, std::size_t threads = 1) {
    std::vector<float> output(static_cast<std::size_t>(count * shape_.heads * shape_.dim));
    std::int32_t last = static_cast<std::int32_t>(past + count - 1);
    const Tensor query{{1, count, width_}, rows_.data() + past * width_};
    const Tensor keys{{1, shape_.kv_heads, shape_.length, shape_.dim}, keys_.data()};
    const Tensor values{keys.shape, values_.data()};
    const Tensor lengths{{1}, &last, ort::ElementType::i32};
    const Tensor sinks{{shape_.heads}, sinks_.data()};
    runtime.inputs[0] = &query;
    runtime.inputs[3] = &keys;
    runtime.inputs[4] = &values;
    runtime.inputs[5] = &lengths;
    if (shape_.has_sinks) runtime.inputs[11] = &sinks;
    runtime.outputs = {{{}, output.data()}, keys, values};
    runtime.threads = threads;
    runtime.tasks.clear();

    const ort::Api api = runtime_api();
    const AttentionOp op(api);
    void* kernel = nullptr;
    REQUIRE(op.create_kernel_v2(&op, nullptr, as<ort::KernelInfo>(&runtime), &kernel) == nullptr);
    REQUIRE(op.compute_v2(kernel, as<ort::KernelContext>(&runtime)) == nullptr);
    op.destroy_kernel(kernel);
    return output;
  }

  Runtime runtime;

 private:
  NodeShape shape_;
  std::int64_t width_;
  std::vector<float> rows_;
  std::vector<float> sinks_;
  std::vector<float> keys_;
  std::vector<float> values_;
};

bool same_bits(const float* a, const float* b, std::size_t count) {
  return std::memcmp(a, b, count * sizeof(float)) == 0;
}

TEST_CASE("attention: rows have the same bits in any number, on any number of threads") {
  constexpr std::int64_t most_rows = 33;
  std::vector<NodeShape> shapes;
  for (const std::int64_t length : {60, 700, 1500}) {
    for (const std::int64_t window : {0, 40, 900}) {
      for (const bool has_sinks : {false, true}) {
        shapes.push_back({14, 2, 64, length, window, has_sinks});
        shapes.push_back({20, 1, 44, length, window, has_sinks});
        shapes.push_back({9, 9, 130, length, window, has_sinks});
      }
    }
  }
  for (const NodeShape& shape : shapes) {
    CAPTURE(shape.heads);
    CAPTURE(shape.length);
    CAPTURE(shape.window);
    CAPTURE(shape.has_sinks);
    NodeText text(shape);
    const std::int64_t past = shape.length - most_rows;
    text.attend(0, past);
    const std::vector<float> all = text.attend(past, most_rows);
    CHECK(std::all_of(all.begin(), all.end(), [](float x) { return std::isfinite(x); }));
    for (std::size_t threads = 1; threads <= 4; ++threads) {
      CAPTURE(threads);
      CHECK(text.attend(past, most_rows, threads) == all);
      const auto row = static_cast<std::size_t>(shape.heads * shape.dim);
      for (std::int64_t count = 1; count <= most_rows;
           count += static_cast<std::int64_t>(threads)) {
        CAPTURE(count);
        // The first rows together, and the last of them alone.
        CHECK(same_bits(text.attend(past, count, threads).data(), all.data(),
                        static_cast<std::size_t>(count) * row));
        CHECK(same_bits(text.attend(past + count - 1, 1, threads).data(),
                        all.data() + static_cast<std::size_t>(count - 1) * row, row));
      }
    }
  }
}

TEST_CASE("attention: one row over a long text is a task for each of its chunks") {
  constexpr std::int64_t chunks = 16;
  const auto tasks = [](NodeShape shape, std::int64_t rows) {
    NodeText text(shape);
    text.attend(shape.length - rows, rows);
    return text.runtime.tasks;
  };
  NodeShape shape{.length = chunks * attention_chunk};
  CHECK(tasks(shape, 1) == std::vector<std::size_t>{2 * chunks});
  // 9 rows of 7 heads are 4 blocks, which are put together in parallel too.
  CHECK(tasks(shape, 9) == std::vector<std::size_t>{2 * chunks * 4, 2 * 4});
  CHECK(tasks(shape, 33) == std::vector<std::size_t>{2 * 15});  // 231 rows: enough without
  shape.window = 4 * attention_chunk - 1;  // chunks before a window are nobody's
  CHECK(tasks(shape, 1) == std::vector<std::size_t>{2 * 4});
  shape.window = 100;
  CHECK(tasks(shape, 1).empty());
  CHECK(tasks({.length = 300}, 1).empty());  // sooner done than another thread wakes up
}

}  // namespace
}  // namespace pard
