#include "pard/sequence.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <string>

#include "bindings.h"
#include "pard/stats.h"

namespace pard::python {

namespace {

py::array_t<Token> array_of(std::span<const Token> tokens) {
  return py::array_t<Token>(static_cast<py::ssize_t>(tokens.size()), tokens.data());
}

std::optional<std::string_view> reason_of(const Sequence& sequence) {
  if (!sequence.finished()) return std::nullopt;
  return name_of(*sequence.finish_reason());
}

py::array_t<bool> from_draft_of(const Sequence& sequence) {
  py::array_t<bool> flags(static_cast<py::ssize_t>(sequence.generated().size()));
  for (py::ssize_t i = 0; i < flags.size(); ++i) {
    flags.mutable_at(i) = sequence.from_draft(static_cast<std::size_t>(i));
  }
  return flags;
}

double seconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }

}  // namespace

void register_sequence(py::module_& module) {
  py::class_<RoundCounts>(module, "RoundCounts")
      .def_readonly("rounds", &RoundCounts::rounds)
      .def_readonly("committed", &RoundCounts::committed)
      .def_readonly("drafted", &RoundCounts::drafted)
      .def_readonly("accepted", &RoundCounts::accepted)
      .def_readonly("drafted_at", &RoundCounts::drafted_at)
      .def_readonly("accepted_at", &RoundCounts::accepted_at)
      .def_property_readonly("mean_tokens_per_round", &RoundCounts::mean_tokens_per_round)
      .def("__repr__", [](const RoundCounts& self) {
        return "RoundCounts(rounds=" + std::to_string(self.rounds) +
               ", committed=" + std::to_string(self.committed) +
               ", drafted=" + std::to_string(self.drafted) +
               ", accepted=" + std::to_string(self.accepted) + ")";
      });

  py::class_<RoundTimes>(module, "RoundTimes")
      .def_property_readonly("draft", [](const RoundTimes& times) { return seconds(times.draft); })
      .def_property_readonly("target",
                             [](const RoundTimes& times) { return seconds(times.target); })
      .def_property_readonly("wall", [](const RoundTimes& times) { return seconds(times.wall); });

  py::class_<Sequence, std::shared_ptr<Sequence>>(module, "Sequence")
      .def_property_readonly("id", &Sequence::id)
      .def_property_readonly("tokens", [](const Sequence& self) { return array_of(self.tokens()); })
      .def_property_readonly("generated",
                             [](const Sequence& self) { return array_of(self.generated()); })
      .def_property_readonly("from_draft", &from_draft_of)
      .def_property_readonly("length", &Sequence::length)
      .def_property_readonly("remaining", &Sequence::remaining)
      .def_property_readonly("sampling",
                             [](const Sequence& self) { return self.params().sampling; })
      .def_property_readonly("finished", &Sequence::finished)
      .def_property_readonly("finish_reason", &reason_of)
      .def_property_readonly("counts", [](const Sequence& self) { return self.counts(); })
      .def("cancel", &Sequence::cancel);
}

}  // namespace pard::python
