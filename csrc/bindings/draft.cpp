#include "pard/draft.h"

#include <pybind11/stl.h>

#include "bindings.h"
#include "pard/vocabulary.h"

namespace pard::python {

void register_draft(py::module_& module) {
  py::classh<Drafter>(module, "Drafter");

  py::classh<ParallelDrafter, Drafter>(module, "ParallelDrafter")
      .def(py::init<std::shared_ptr<Model>, Token, std::int64_t>(), py::arg("draft"),
           py::arg("mask_token_id"), py::kw_only(), py::arg("prefill_chunk") = 512);

  py::classh<AutoregressiveDrafter, Drafter>(module, "AutoregressiveDrafter")
      .def(py::init<std::shared_ptr<Model>, std::int64_t>(), py::arg("draft"), py::kw_only(),
           py::arg("prefill_chunk") = 512);

  py::class_<VocabularyComparison>(module, "VocabularyComparison")
      .def_readonly("num_equal", &VocabularyComparison::num_equal)
      .def_readonly("different", &VocabularyComparison::different)
      .def_readonly("only_in_target", &VocabularyComparison::only_in_target)
      .def_readonly("only_in_draft", &VocabularyComparison::only_in_draft);

  module.def("compare_vocabularies", &compare_vocabularies, py::arg("target"), py::arg("draft"));
  module.def("check_compatible", &check_compatible, py::arg("target"), py::arg("draft"));
  module.def("num_proposable", &num_proposable, py::arg("target"), py::arg("draft"));
}

}  // namespace pard::python
