#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "gpu.h"
#include "kernel_choosing.h"
#include "pard/onnx/onnx_model.h"

namespace pard::python {

namespace {

// Wheels of ONNX Runtime lie where Python finds its modules. Like its import, this passes over
// entries that are no strings; names of directories may hold bytes that are no text.
OrtSearch search_in(const std::string& onnxruntime) {
  std::vector<std::string> directories;
  const py::object fsencode = py::module_::import("os").attr("fsencode");
  for (const py::handle entry : py::module_::import("sys").attr("path")) {
    if (py::isinstance<py::str>(entry)) {
      directories.push_back(fsencode(entry).cast<std::string>());
    }
  }
  return {onnxruntime, std::move(directories)};
}

// A target whose rows were tried and found to differ. The portable form promises no more.
void warn_if_not_exact(const OnnxModel& model, const OnnxModelOptions& options) {
  if (model.exact() || !options.exact || !options.is_target ||
      model.contract().form == GraphForm::portable) {
    return;
  }
  const py::module_ errors = py::module_::import("pard_rt.errors");
  const py::object error = errors.attr("ModelError")(
      "Model '" + model.info().name + "' rounds a row differently beside other rows",
      "the same bits wherever a row is computed",
      "other bits, on provider " + model.provider() + " of ONNX Runtime " +
          model.library().version(),
      "Pass exact=False to accept that; weights in float32 on the CPU have been exact.");
  errors.attr("fall_back")(
      "Decoding is not exact: a text may differ from plain decoding's where two tokens nearly tie",
      error);
}

std::shared_ptr<OnnxModel> open(const std::filesystem::path& folder, const std::string& provider,
                                std::map<std::string, std::string> provider_options, int threads,
                                bool spinning, std::optional<std::int64_t> max_length, bool exact,
                                bool own_attention, bool own_matmul,
                                std::optional<bool> static_shapes,
                                std::optional<bool> device_memory,
                                std::shared_ptr<TokenBytes> token_bytes, bool is_target, bool probe,
                                const std::string& onnxruntime) {
  const OrtSearch search = search_in(onnxruntime);
  const OnnxModelOptions options{{provider, std::move(provider_options), threads, spinning},
                                 max_length,
                                 exact,
                                 own_attention,
                                 own_matmul,
                                 static_shapes,
                                 device_memory,
                                 std::move(token_bytes),
                                 is_target,
                                 probe};
  std::shared_ptr<OnnxModel> model;
  {
    const ReleasedGil released;
    model = std::make_shared<OnnxModel>(folder, options, search);
  }
  warn_if_not_exact(*model, options);
  return model;
}

py::tuple cached_rows(const OnnxModel& model, SequenceId sequence, std::int64_t layer,
                      std::int64_t length) {
  const CachedRows rows = model.cached_rows(sequence, layer, length);
  const std::vector<std::int64_t> shape{length, model.contract().num_kv_heads,
                                        model.contract().head_dim};
  return py::make_tuple(py::array_t<float>(shape, rows.keys.data()),
                        py::array_t<float>(shape, rows.values.data()));
}

std::string form_of(const FolderContract& contract) {
  return contract.form == GraphForm::gqa ? "gqa" : "portable";
}

}  // namespace

void register_onnx(py::module_& module) {
  py::class_<FolderContract>(module, "FolderContract")
      .def_readonly("name", &FolderContract::name)
      .def_property_readonly("form", &form_of)
      .def_readonly("from_builder", &FolderContract::from_builder)
      .def_readonly("weights", &FolderContract::weights)
      .def_readonly("num_layers", &FolderContract::num_layers)
      .def_readonly("num_kv_heads", &FolderContract::num_kv_heads)
      .def_readonly("head_dim", &FolderContract::head_dim)
      .def_readonly("vocab_size", &FolderContract::vocab_size)
      .def_readonly("max_length", &FolderContract::max_length)
      .def_readonly("num_tokens", &FolderContract::num_tokens)
      .def_readonly("bos_token_id", &FolderContract::bos_token_id)
      .def_readonly("eos_token_ids", &FolderContract::eos_token_ids)
      .def_readonly("mask_token_id", &FolderContract::mask_token_id)
      .def_readonly("head_tokens", &FolderContract::head_tokens)
      .def_readonly("requires_own_attention", &FolderContract::requires_own_attention)
      .def("check_provider", &check_provider, py::arg("provider"));
  module.def("read_folder", &read_folder, py::arg("folder"),
             "What an ONNX folder says about its model.");

  py::classh<OnnxModel, Model>(module, "OnnxModel")
      .def(py::init(&open), py::arg("folder"), py::kw_only(), py::arg("provider") = "cpu",
           py::arg("provider_options") = std::map<std::string, std::string>{},
           py::arg("threads") = 0, py::arg("spinning") = true, py::arg("max_length") = py::none(),
           py::arg("exact") = true, py::arg("own_attention") = true, py::arg("own_matmul") = true,
           py::arg("static_shapes") = py::none(), py::arg("device_memory") = py::none(),
           py::arg("token_bytes") = py::none(), py::arg("is_target") = true,
           py::arg("probe") = true, py::arg("onnxruntime") = "")
      .def_property_readonly("contract", &OnnxModel::contract)
      .def_property_readonly("own_attention", &OnnxModel::own_attention)
      .def_property_readonly("own_matmul", &OnnxModel::own_matmul)
      .def_property_readonly("exact", &OnnxModel::exact)
      .def("padding", &OnnxModel::padding, py::arg("rows"), py::call_guard<ReleasedGil>())
      .def_property_readonly("num_shapes", &OnnxModel::num_shapes)
      .def_property_readonly("onnxruntime_path",
                             [](const OnnxModel& self) { return self.library().path(); })
      .def_property_readonly("onnxruntime_version",
                             [](const OnnxModel& self) { return self.library().version(); })
      .def("cached_rows", &cached_rows, py::arg("sequence"), py::arg("layer"), py::arg("length"))
      .def(
          "choose_on_device",
          [](OnnxModel& self, const std::vector<std::string>& code_objects) {
            const std::string& provider = self.provider();
            const char* driver = provider == "cpu" ? "host" : provider == "cuda" ? "cuda" : "hip";
            self.choose_on([&] {
              return std::make_shared<gpu::KernelChoosing>(open_kernels(driver, code_objects));
            });
          },
          py::arg("code_objects") = std::vector<std::string>{}, py::call_guard<ReleasedGil>())
      .def_property_readonly("provider", &OnnxModel::provider)
      .def("probe", &OnnxModel::probe, py::arg("max_rows") = 0, py::call_guard<ReleasedGil>());
  module.def(
      "onnxruntime_providers",
      [](const std::string& onnxruntime) {
        const auto library = OrtLibrary::open(search_in(onnxruntime));
        return py::make_tuple(library->path(), library->version(), library->providers());
      },
      py::arg("onnxruntime") = "",
      "Path, version and compiled-in providers of the ONNX Runtime that is found first.");
}

}  // namespace pard::python
