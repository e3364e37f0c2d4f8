#include "pard/model.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings.h"
#include "dlpack.h"
#include "pard/choose.h"
#include "pard/probe.h"

namespace pard::python {

namespace {

// A ForwardItem that owns its tokens.
struct Item {
  SequenceId sequence;
  std::int64_t past_length;
  std::vector<Token> tokens;
  std::int64_t num_rows;

  explicit Item(const ForwardItem& item)
      : Item(item.sequence, item.past_length, {item.tokens.begin(), item.tokens.end()},
             item.num_rows) {}
  Item(SequenceId id, std::int64_t past, std::vector<Token> new_tokens, std::int64_t rows)
      : sequence(id), past_length(past), tokens(std::move(new_tokens)), num_rows(rows) {}

  ForwardItem borrow() const { return {sequence, past_length, tokens, num_rows}; }
};

// A Python class as a Model. The core runs without the GIL; it is taken here.
class PythonModel final : public Model, public py::trampoline_self_life_support {
 public:
  const ModelInfo& info() const override {
    const AcquiredGil gil;
    info_ = method("info")().cast<ModelInfo>();
    return info_;
  }

  LogitsView forward(std::span<const ForwardItem> batch) override {
    const AcquiredGil gil;
    py::list items;
    for (const ForwardItem& item : batch) items.append(Item(item));
    const py::object logits = method("forward")(items);
    logits_ = logits.is_none() ? BorrowedLogits{} : borrow_logits(logits);
    return logits_.view;
  }

  void release(SequenceId sequence) noexcept override {
    const AcquiredGil gil;
    try {
      method("release")(sequence);
    } catch (py::error_already_set& error) {
      error.discard_as_unraisable("pard_rt.Model.release");
    } catch (const std::exception&) {  // no such method: nothing to release
    }
  }

 private:
  py::function method(const char* name) const {
    const py::function found = py::get_override(static_cast<const Model*>(this), name);
    if (found) return found;
    throw py::type_error(std::string("a Model must define ") + name + "()");
  }

  mutable ModelInfo info_;
  BorrowedLogits logits_;  // until the next forward
};

py::array_t<Token> tokens_of(const Item& item) {
  return py::array_t<Token>(static_cast<py::ssize_t>(item.tokens.size()), item.tokens.data());
}

// Model::forward for Python callers, as float32 of its own.
py::array_t<float> forward(Model& model, const std::vector<Item>& items) {
  std::vector<ForwardItem> batch;
  for (const Item& item : items) batch.push_back(item.borrow());
  LogitsView logits;
  {
    const ReleasedGil released;
    logits = model.forward(batch);
  }
  py::array_t<float> rows({logits.num_rows, logits.vocab_size});
  for (std::int64_t i = 0; i < logits.num_rows; ++i) {
    widen(logits.row(i), rows.mutable_data(i, 0));
  }
  return rows;
}

}  // namespace

void register_model(py::module_& module) {
  py::classh<TokenBytes>(module, "TokenBytes")
      .def(py::init([](const std::vector<std::string>& spelled) {
             return std::make_shared<TokenBytes>(spelled);
           }),
           py::arg("spelled"))
      .def("__len__", &TokenBytes::size)
      .def("__getitem__", [](const TokenBytes& self, Token token) {
        if (token < 0 || token >= self.size()) throw py::index_error();
        return py::bytes(self[token]);
      });

  py::class_<ModelInfo>(module, "ModelInfo")
      .def(py::init([](std::string name, std::int64_t vocab_size, std::int64_t max_length,
                       std::optional<std::int64_t> num_tokens,
                       std::shared_ptr<TokenBytes> token_bytes, std::vector<Token> head_tokens) {
             return ModelInfo{
                 std::move(name),       vocab_size, max_length, num_tokens, std::move(token_bytes),
                 std::move(head_tokens)};
           }),
           py::kw_only(), py::arg("name"), py::arg("vocab_size"), py::arg("max_length"),
           py::arg("num_tokens") = py::none(), py::arg("token_bytes") = py::none(),
           py::arg("head_tokens") = std::vector<Token>{})
      .def_readonly("name", &ModelInfo::name)
      .def_readonly("vocab_size", &ModelInfo::vocab_size)
      .def_readonly("max_length", &ModelInfo::max_length)
      .def_readonly("num_tokens", &ModelInfo::num_tokens)
      .def_readonly("head_tokens", &ModelInfo::head_tokens)
      .def_property_readonly("token_bytes", [](const ModelInfo& self) {
        return std::const_pointer_cast<TokenBytes>(self.token_bytes);  // no method changes it
      });

  py::class_<Item>(module, "ForwardItem")
      .def(py::init<SequenceId, std::int64_t, std::vector<Token>, std::int64_t>(), py::kw_only(),
           py::arg("sequence"), py::arg("past_length"), py::arg("tokens"), py::arg("num_rows"))
      .def_readonly("sequence", &Item::sequence)
      .def_readonly("past_length", &Item::past_length)
      .def_property_readonly("tokens", &tokens_of)
      .def_readonly("num_rows", &Item::num_rows);

  py::class_<ProbeReport>(module, "ProbeReport")
      .def_readonly("row_counts", &ProbeReport::row_counts)
      .def_readonly("rewinding", &ProbeReport::rewinding)
      .def_readonly("rejected_rows", &ProbeReport::rejected_rows)
      .def_readonly("same_tokens", &ProbeReport::same_tokens)
      .def_readonly("max_rows", &ProbeReport::max_rows)
      .def_readonly("rounding", &ProbeReport::rounding);

  py::classh<Model, PythonModel>(module, "Model")
      .def(py::init<>())
      .def("info", &Model::info, py::return_value_policy::copy)
      .def("forward", &forward, py::arg("batch"))
      .def("release", &Model::release, py::arg("sequence"));

  module.def(
      "probe_model",
      [](Model& model, double tolerance, std::int64_t max_rows) {
        return probe_model(model, {tolerance, tolerance, tolerance}, max_rows);
      },
      py::arg("model"), py::kw_only(), py::arg("tolerance"), py::arg("max_rows") = 2,
      py::call_guard<ReleasedGil>(), "Tries a model on a sequence of its own, and releases it.");
}

}  // namespace pard::python
