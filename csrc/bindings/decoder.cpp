#include "pard/decoder.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <limits>
#include <string>
#include <utility>

#include "bindings.h"
#include "pard/composed_executor.h"
#include "pard/error.h"

namespace pard::python {

namespace {

// What a Python observer is handed. The row is borrowed for the call, so it is taken away
// afterwards.
struct Event {
  Token token;
  std::int64_t position;
  bool from_draft;
  bool is_last;
  std::optional<LogitsRow> row;

  double log_probability(std::optional<Token> other) const {
    return pard::log_probability(borrowed_row(), other.value_or(token));
  }

  py::array_t<float> logits() const {
    py::array_t<float> copy(borrowed_row().size);
    widen(*row, copy.mutable_data());
    return copy;
  }

 private:
  const LogitsRow& borrowed_row() const {
    if (!row) {
      throw InvalidArgument({"The row of this token is gone", "a call from inside the observer",
                             "a later one", "Read logits before the observer returns."});
    }
    if (row->data == nullptr) {
      throw InvalidArgument({"This executor hands out no rows", "rows in the host's memory", "none",
                             "Decode with a Model on the host to see logits."});
    }
    return *row;
  }
};

// The core may drop an observer while it runs without the GIL.
std::shared_ptr<py::function> share(py::function function) {
  return {new py::function(std::move(function)), [](py::function* held) {
            const AcquiredGil gil;
            delete held;
          }};
}

TokenObserver observer_of(py::function function) {
  return [function = share(std::move(function))](const TokenEvent& event) {
    const AcquiredGil gil;
    const auto seen =
        std::make_shared<Event>(Event{event.token, event.sequence.length() - 1, event.from_draft,
                                      event.sequence.finished(), event.row});
    py::object go_on;
    try {
      go_on = (*function)(seen);
    } catch (...) {
      seen->row.reset();
      throw;
    }
    seen->row.reset();
    return go_on.is_none() || py::bool_(go_on);
  };
}

// Arrays and tensors of any framework become lists first.
std::vector<Token> token_ids(const char* what, const py::object& given) {
  const bool is_array = py::hasattr(given, "tolist");
  std::vector<std::int64_t> ids;
  try {
    ids = (is_array ? py::object(given.attr("tolist")()) : given).cast<std::vector<std::int64_t>>();
  } catch (const py::cast_error&) {
    throw InvalidArgument({std::string(what) + " must be a flat list of token ids",
                           "integers below 2**31", py::repr(given), "Pass one list of integers."});
  }
  std::vector<Token> tokens;
  tokens.reserve(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (!std::in_range<Token>(ids[i])) {
      throw InvalidArgument({std::string(what) + "[" + std::to_string(i) + "] is not a token id",
                             "at most " + std::to_string(std::numeric_limits<Token>::max()),
                             std::to_string(ids[i]), "Use ids of the target's own tokenizer."});
    }
    tokens.push_back(static_cast<Token>(ids[i]));
  }
  return tokens;
}

std::unique_ptr<Decoder> decode_on(std::unique_ptr<RoundExecutor> executor,
                                   std::optional<int> num_speculative_tokens, bool adaptive,
                                   std::int64_t max_batch_size) {
  if (max_batch_size < 1) {
    throw InvalidArgument({"max_batch_size is out of range", "at least 1",
                           std::to_string(max_batch_size), "Leave it at its default of 16."});
  }
  return std::make_unique<Decoder>(
      std::move(executor),
      DecoderOptions{num_speculative_tokens, static_cast<std::size_t>(max_batch_size), adaptive});
}

std::unique_ptr<Decoder> make_decoder(std::shared_ptr<Model> target,
                                      std::shared_ptr<Drafter> drafter,
                                      std::optional<int> num_speculative_tokens, bool adaptive,
                                      std::int64_t max_batch_size, std::int64_t prefill_chunk) {
  return decode_on(
      std::make_unique<ComposedExecutor>(std::move(target), std::move(drafter), prefill_chunk),
      num_speculative_tokens, adaptive, max_batch_size);
}

std::shared_ptr<Sequence> add(Decoder& decoder, const py::object& prompt,
                              std::int64_t max_new_tokens, const SamplingParams& sampling,
                              const py::object& eos_token_ids, const py::object& stop_token_ids,
                              std::optional<py::function> observer) {
  GenerationParams params{sampling, max_new_tokens, token_ids("eos_token_ids", eos_token_ids),
                          token_ids("stop_token_ids", stop_token_ids)};
  return decoder.add(token_ids("prompt", prompt), std::move(params),
                     observer ? observer_of(std::move(*observer)) : TokenObserver{});
}

// Decoder::run, heeding Ctrl-C between rounds.
void run(Decoder& decoder) {
  bool more = true;
  while (more) {
    {
      const ReleasedGil released;
      more = decoder.step();
    }
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

}  // namespace

void register_decoder(py::module_& module) {
  py::class_<Event, std::shared_ptr<Event>>(module, "TokenEvent")
      .def_readonly("token", &Event::token)
      .def_readonly("position", &Event::position)
      .def_readonly("from_draft", &Event::from_draft)
      .def_readonly("is_last", &Event::is_last)
      .def("log_probability", &Event::log_probability, py::arg("token") = py::none())
      .def("logits", &Event::logits);

  py::class_<Decoder>(module, "Decoder")
      .def(py::init(&make_decoder), py::arg("target"), py::arg("drafter") = py::none(),
           py::kw_only(), py::arg("num_speculative_tokens") = py::none(),
           py::arg("adaptive") = false, py::arg("max_batch_size") = 16,
           py::arg("prefill_chunk") = 512)
      .def(py::init(&decode_on), py::arg("executor"), py::kw_only(),
           py::arg("num_speculative_tokens") = py::none(), py::arg("adaptive") = false,
           py::arg("max_batch_size") = 16)
      .def("add", &add, py::arg("prompt"), py::kw_only(), py::arg("max_new_tokens") = 128,
           py::arg("sampling") = SamplingParams{}, py::arg("eos_token_ids") = py::tuple(),
           py::arg("stop_token_ids") = py::tuple(), py::arg("observer") = py::none())
      .def("step", &Decoder::step, py::call_guard<ReleasedGil>())
      .def("run", &run)
      .def_property("num_speculative_tokens", &Decoder::num_speculative_tokens,
                    &Decoder::set_num_speculative_tokens)
      .def_property_readonly("num_active", &Decoder::num_active)
      .def_property_readonly("num_waiting", &Decoder::num_waiting)
      .def_property_readonly("counts", [](const Decoder& self) { return self.counts(); })
      .def_property_readonly("times", &Decoder::times);
}

}  // namespace pard::python
