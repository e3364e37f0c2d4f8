#include "ort_api.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include "pard/error.h"

namespace pard {

namespace ort {

Api load_api(const void* const* table) {
  Api api{};
  const auto slot = [&]<class F>(F*& function, std::size_t index) {
    function = reinterpret_cast<F*>(const_cast<void*>(table[index]));
  };
  slot(api.create_status, 0);
  slot(api.get_error_message, 2);
  slot(api.create_env, 3);
  slot(api.create_session, 7);
  slot(api.create_session_from_array, 8);
  slot(api.run, 9);
  slot(api.create_session_options, 10);
  slot(api.set_graph_optimization_level, 23);
  slot(api.set_intra_op_num_threads, 24);
  slot(api.create_custom_op_domain, 26);
  slot(api.add_to_custom_op_domain, 27);
  slot(api.add_custom_op_domain, 28);
  slot(api.create_tensor_with_data, 49);
  slot(api.get_tensor_data, 51);
  slot(api.get_element_type, 60);
  slot(api.get_dimensions_count, 61);
  slot(api.get_dimensions, 62);
  slot(api.get_tensor_info, 65);
  slot(api.create_memory_info, 68);
  slot(api.allocator_alloc, 75);
  slot(api.allocator_free, 76);
  slot(api.get_float_attribute, 85);
  slot(api.get_int_attribute, 86);
  slot(api.get_kernel_input, 90);
  slot(api.get_kernel_output, 91);
  slot(api.release_env, 92);
  slot(api.release_status, 93);
  slot(api.release_memory_info, 94);
  slot(api.release_session, 95);
  slot(api.release_value, 96);
  slot(api.release_tensor_info, 99);
  slot(api.release_session_options, 100);
  slot(api.release_custom_op_domain, 101);
  slot(api.get_available_providers, 125);
  slot(api.release_available_providers, 126);
  slot(api.add_session_config_entry, 130);
  slot(api.create_allocator, 131);
  slot(api.release_allocator, 132);
  slot(api.append_cuda, 204);
  slot(api.create_cuda_options, 205);
  slot(api.update_cuda_options, 206);
  slot(api.release_cuda_options, 208);
  slot(api.append_provider, 216);
  slot(api.get_output_name, 233);
  slot(api.get_node_name, 244);
  slot(api.get_constant_input, 249);
  slot(api.parallel_for, 274);
  return api;
}

}  // namespace ort

namespace {

struct Provider {
  std::string_view name;
  std::string_view ort_name;
  const char* wheel;
};

constexpr Provider known_providers[] = {
    {"cpu", "CPUExecutionProvider", "onnxruntime"},
    {"cuda", "CUDAExecutionProvider", "onnxruntime-gpu"},
    {"migraphx", "MIGraphXExecutionProvider", "onnxruntime-migraphx"},
    {"rocm", "ROCMExecutionProvider", "onnxruntime-rocm"},
};

const Provider& find_provider(std::string_view name) {
  for (const Provider& provider : known_providers) {
    if (provider.name == name) {
      return provider;
    }
  }
  throw InvalidArgument({"An unknown execution provider was asked for",
                         "cpu, cuda, migraphx or rocm", "'" + std::string(name) + "'",
                         "Pass one of these names."});
}

// 1.9.2 sorts before 1.22.0.
std::vector<int> version_key(std::string_view text) {
  std::vector<int> key;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (std::isdigit(static_cast<unsigned char>(text[i])) == 0) {
      continue;
    }
    int number = 0;
    for (; i < text.size() && std::isdigit(static_cast<unsigned char>(text[i])) != 0; ++i) {
      number = number > 99'999 ? number : number * 10 + (text[i] - '0');
    }
    key.push_back(number);
  }
  return key;
}

// libonnxruntime.so and libonnxruntime.so.1.x.y of one directory, newest first.
std::vector<std::string> libraries_in(const std::filesystem::path& directory) {
  constexpr std::string_view stem = "libonnxruntime.so";
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    const std::string name = entry.path().filename().string();
    if (name == stem || name.starts_with(std::string(stem) + ".")) {
      names.push_back(name);
    }
  }
  std::sort(names.begin(), names.end(), [](const std::string& a, const std::string& b) {
    return version_key(a) > version_key(b);
  });
  for (std::string& name : names) {
    name = (directory / name).string();
  }
  return names;
}

void append_place(std::vector<std::string>& candidates, const std::string& place) {
  std::error_code error;
  if (!std::filesystem::is_directory(place, error)) {
    candidates.push_back(place);
    return;
  }
  for (const char* inside : {"", "onnxruntime/capi", "capi", "lib"}) {
    const auto found = libraries_in(std::filesystem::path(place) / inside);
    candidates.insert(candidates.end(), found.begin(), found.end());
  }
}

std::vector<std::string> candidates_of(const OrtSearch& search) {
  std::vector<std::string> candidates;
  const char* variable = std::getenv("PARD_RT_ONNXRUNTIME");
  if (!search.path.empty()) {
    append_place(candidates, search.path);
  } else if (variable != nullptr && *variable != '\0') {
    append_place(candidates, variable);
  } else {
    std::error_code error;
    for (const std::string& directory : search.directories) {
      if (std::filesystem::is_directory(directory, error)) append_place(candidates, directory);
    }
    candidates.emplace_back("libonnxruntime.so.1");
    candidates.emplace_back("libonnxruntime.so");
  }
  return candidates;
}

// Loading a library that was cut short would end the process: its segments must lie in the file.
bool is_cut_short(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  ElfW(Ehdr) header{};
  if (!file.read(reinterpret_cast<char*>(&header), sizeof(header)) ||
      std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) {
    return false;  // dlopen says what it is instead
  }
  std::error_code error;
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  file.seekg(static_cast<std::streamoff>(header.e_phoff));
  for (int i = 0; i < header.e_phnum; ++i) {
    ElfW(Phdr) segment{};
    if (!file.read(reinterpret_cast<char*>(&segment), sizeof(segment)) || segment.p_offset > size ||
        segment.p_filesz > size - segment.p_offset) {
      return true;
    }
  }
  return false;
}

[[noreturn]] void fail_missing(const Provider& provider, const std::string& tried) {
  throw RuntimeMissing(
      {"ONNX Runtime with the provider '" + std::string(provider.name) + "' was not found",
       "a usable libonnxruntime.so that has it",
       tried.empty() ? "no library in the places searched" : tried,
       "Install it with: pip install " + std::string(provider.wheel) +
           ", or name the library in PARD_RT_ONNXRUNTIME."});
}

}  // namespace

OrtLibrary::OrtLibrary(const std::string& path) : path_(path) {
  const auto reject = [&](const std::string& expected, const std::string& actual) {
    throw RuntimeMissing({"'" + path + "' cannot serve as ONNX Runtime", expected, actual,
                          "Install another one: pip install -U onnxruntime."});
  };
  if (is_cut_short(path)) {
    reject("a shared library", "a part of one: the file is cut short");
  }
  handle_ = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle_ == nullptr) {
    const char* reason = ::dlerror();
    reject("a shared library", reason == nullptr ? "none" : reason);
  }
  const auto get_base = reinterpret_cast<const ort::ApiBase* (*)()>(symbol("OrtGetApiBase"));
  if (get_base == nullptr) {
    reject("a library that exports OrtGetApiBase", "one without that function");
  }
  const ort::ApiBase* base = get_base();
  version_ = base->get_version_string();
  const auto key = version_key(version_);
  const std::string minimum = "1." + std::to_string(api_version);
  // An older library would answer on stderr as well: so its version is read first.
  const void* const* table = key < std::vector<int>{1, static_cast<int>(api_version)}
                                 ? nullptr
                                 : base->get_api(api_version);
  if (table == nullptr) {
    reject("version " + minimum + " or later", "version " + version_);
  }
  api_ = ort::load_api(table);

  // What fails is told through a Status, once; the log would repeat it on stderr.
  ort::Env* env = nullptr;
  check(api_.create_env(ort::LogLevel::fatal, "pard_rt", &env), "start");
  env_ = {env, api_.release_env};

  char** names = nullptr;
  int count = 0;
  check(api_.get_available_providers(&names, &count), "list its providers");
  for (int i = 0; i < count; ++i) {
    const auto* known =
        std::find_if(std::begin(known_providers), std::end(known_providers),
                     [&](const Provider& provider) { return provider.ort_name == names[i]; });
    providers_.emplace_back(known == std::end(known_providers) ? names[i] : known->name);
  }
  check(api_.release_available_providers(names, count), "free the list of its providers");
}

std::shared_ptr<const OrtLibrary> OrtLibrary::open(const OrtSearch& search,
                                                   std::string_view provider) {
  const Provider& wanted = find_provider(provider);
  std::string tried;
  for (const std::string& candidate : candidates_of(search)) {
    std::string verdict;
    try {
      const std::shared_ptr<const OrtLibrary> library(new OrtLibrary(candidate));
      if (library->has_provider(provider)) {
        return library;
      }
      for (const std::string& name : library->providers()) {
        verdict += (verdict.empty() ? "" : ", ") + name;
      }
      verdict = "'" + candidate + "' (" + library->version() + ") with " + verdict;
    } catch (const RuntimeMissing& error) {
      verdict = candidate.find('/') == candidate.npos ? "" : error.detail().actual;
      verdict = verdict.empty() ? "" : "'" + candidate + "': " + verdict;
    }
    tried += (tried.empty() || verdict.empty() ? "" : "; ") + verdict;
  }
  fail_missing(wanted, tried);
}

bool OrtLibrary::is_at_least(int minor) const {
  return version_key(version_) >= std::vector<int>{1, minor};
}

bool OrtLibrary::has_provider(std::string_view provider) const {
  return std::find(providers_.begin(), providers_.end(), provider) != providers_.end();
}

void* OrtLibrary::symbol(const char* name) const { return ::dlsym(handle_, name); }

void OrtLibrary::check(ort::Status* status, std::string_view what, const char* remedy) const {
  if (status == nullptr) {
    return;
  }
  std::string message = api_.get_error_message(status);
  api_.release_status(status);
  message.erase(message.find_last_not_of(" \n") + 1);
  throw ModelError(
      {"ONNX Runtime " + version_ + " could not " + std::string(what), "success", message, remedy});
}

}  // namespace pard
