#include <pybind11/stl.h>

#include <vector>

#include "bindings.h"
#include "dlpack.h"
#include "pard/choose.h"
#include "pard/error.h"
#include "pard/verify.h"

namespace pard::python {

namespace {

LogitsRow row_of(const BorrowedLogits& logits) {
  if (logits.view.num_rows != 1) {
    throw InvalidArgument({"A choice is made from one row", "1 row",
                           std::to_string(logits.view.num_rows) + " rows", "Pass rows[i]."});
  }
  return logits.view.row(0);
}

}  // namespace

void register_sampling(py::module_& module) {
  py::class_<SamplingParams>(module, "SamplingParams")
      .def(py::init([](float temperature, std::int32_t top_k, float top_p, float min_p,
                       std::uint64_t seed) {
             const SamplingParams params{temperature, top_k, top_p, min_p, seed};
             params.validate();
             return params;
           }),
           py::kw_only(), py::arg("temperature") = 0.0F, py::arg("top_k") = 0,
           py::arg("top_p") = 1.0F, py::arg("min_p") = 0.0F, py::arg("seed") = 0)
      .def_readonly("temperature", &SamplingParams::temperature)
      .def_readonly("top_k", &SamplingParams::top_k)
      .def_readonly("top_p", &SamplingParams::top_p)
      .def_readonly("min_p", &SamplingParams::min_p)
      .def_readonly("seed", &SamplingParams::seed);

  module.def(
      "choose",
      [](const py::object& row, const SamplingParams& params, std::int64_t position) {
        return choose(row_of(borrow_logits(row)), params, position);
      },
      py::arg("row"), py::arg("params"), py::arg("position"),
      "The token the target emits at `position` when its model says `row`.");

  module.def(
      "score",
      [](const py::object& row, const SamplingParams& params, std::int64_t position, Token token) {
        return score(row_of(borrow_logits(row)), params, position, token);
      },
      py::arg("row"), py::arg("params"), py::arg("position"), py::arg("token"),
      "What `choose` compares: a kept token's score.");

  module.def(
      "log_probability",
      [](const py::object& row, Token token) {
        return log_probability(row_of(borrow_logits(row)), token);
      },
      py::arg("row"), py::arg("token"), "log softmax(row)[token], in nats.");

  module.def(
      "verify",
      [](const std::vector<Token>& proposals, const std::vector<Token>& choices) {
        if (choices.size() != proposals.size() + 1) {
          throw InvalidArgument({"Choices and proposals do not match",
                                 std::to_string(proposals.size() + 1) + " choices",
                                 std::to_string(choices.size()),
                                 "Pass one choice more than proposals."});
        }
        const Verdict verdict =
            verify(proposals, [&](int i) { return choices[static_cast<std::size_t>(i)]; });
        return py::make_tuple(verdict.num_accepted, verdict.next_token);
      },
      py::arg("proposals"), py::arg("choices"),
      "How many proposals equal the target's choices, and the token that follows them.");
}

}  // namespace pard::python
