#include "pard/draft.h"

#include "bindings.h"

namespace pard::python {

void register_draft(py::module_& module) {
  py::classh<Drafter>(module, "Drafter");

  py::classh<ParallelDrafter, Drafter>(module, "ParallelDrafter")
      .def(py::init<std::shared_ptr<Model>, Token, std::int64_t>(), py::arg("draft"),
           py::arg("mask_token_id"), py::kw_only(), py::arg("prefill_chunk") = 512);

  py::classh<AutoregressiveDrafter, Drafter>(module, "AutoregressiveDrafter")
      .def(py::init<std::shared_ptr<Model>, std::int64_t>(), py::arg("draft"), py::kw_only(),
           py::arg("prefill_chunk") = 512);

  module.def("check_compatible", &check_compatible, py::arg("target"), py::arg("draft"),
             "Refuses a draft whose token ids are not the target's.");
}

}  // namespace pard::python
