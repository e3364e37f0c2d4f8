#include "pard/executor.h"

#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "pard/error.h"

namespace pard::python {

namespace {

// A SequenceRound that owns its tokens.
struct Round {
  int num_proposals;
  int num_accepted;
  std::vector<Token> tokens;
  py::object error;  // an exception, or None
};

// A Python class as a RoundExecutor. The core runs without the GIL; it is taken here.
class PythonExecutor final : public RoundExecutor, public py::trampoline_self_life_support {
 public:
  const ModelInfo& target_info() const override {
    const AcquiredGil gil;
    info_ = method("target_info")().cast<ModelInfo>();
    return info_;
  }

  bool can_draft() const override {
    const AcquiredGil gil;
    return method("can_draft")().cast<bool>();
  }

  void launch(std::span<Sequence* const> batch, int num_speculative_tokens) override {
    const AcquiredGil gil;
    py::list sequences;
    for (Sequence* sequence : batch) {
      sequences.append(py::cast(sequence, py::return_value_policy::reference));
    }
    method("launch")(sequences, num_speculative_tokens);
  }

  std::span<const SequenceRound> collect() override {
    const AcquiredGil gil;
    owned_.clear();
    rounds_.clear();
    for (const py::handle round : method("collect")()) {
      if (!py::isinstance<Round>(round)) {
        throw py::type_error("collect() returns SequenceRounds, not " +
                             py::repr(round).cast<std::string>());
      }
      owned_.push_back(round.cast<Round>());
    }
    for (Round& round : owned_) {
      std::exception_ptr error;
      if (!round.error.is_none()) {
        try {
          PyErr_SetObject(py::type::handle_of(round.error).ptr(), round.error.ptr());
          throw py::error_already_set();
        } catch (...) {
          error = std::current_exception();
        }
        round.error = py::none();
      }
      rounds_.push_back({round.num_proposals, round.num_accepted, round.tokens, {}, error});
    }
    return rounds_;
  }

  void keep(const Sequence& sequence) override { call("keep", sequence.id(), sequence.length()); }

  void release(SequenceId sequence) noexcept override {
    const AcquiredGil gil;
    try {
      method("release")(sequence);
    } catch (py::error_already_set& error) {
      error.discard_as_unraisable("pard_rt.RoundExecutor.release");
    } catch (const std::exception&) {  // no such method: nothing to release
    }
  }

  void check_integrity(const Sequence&) const override {}
  RoundTimes times() const override { return {}; }

 private:
  template <class... Args>
  void call(const char* name, const Args&... args) const {
    const AcquiredGil gil;
    method(name)(args...);
  }

  py::function method(const char* name) const {
    const py::function found = py::get_override(static_cast<const RoundExecutor*>(this), name);
    if (found) return found;
    throw py::type_error(std::string("a RoundExecutor must define ") + name + "()");
  }

  mutable ModelInfo info_;
  std::vector<Round> owned_;
  std::vector<SequenceRound> rounds_;
};

Round make_round(int num_proposals, int num_accepted, std::vector<Token> tokens, py::object error) {
  if (!error.is_none() && !PyExceptionInstance_Check(error.ptr())) {
    throw py::type_error("the error of a SequenceRound is an exception or None, not " +
                         py::repr(error).cast<std::string>());
  }
  return {num_proposals, num_accepted, std::move(tokens), std::move(error)};
}

}  // namespace

void register_executor(py::module_& module) {
  py::class_<Round>(module, "SequenceRound")
      .def(py::init(&make_round), py::kw_only(), py::arg("num_proposals") = 0,
           py::arg("num_accepted") = 0, py::arg("tokens") = std::vector<Token>{},
           py::arg("error") = py::none());

  py::classh<RoundExecutor, PythonExecutor>(module, "RoundExecutor").def(py::init<>());
}

}  // namespace pard::python
