#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace pard::ort {

// ONNX Runtime's C API as far as this project calls it. Its function table only ever grows at the
// end, so that an index, once public, holds for every later version; no header is needed.

struct Allocator;
struct CudaOptions;
struct CustomOp;
struct CustomOpDomain;
struct Env;
struct KernelContext;
struct KernelInfo;
struct MemoryInfo;
struct RunOptions;
struct Session;
struct SessionOptions;
struct Status;
struct TensorInfo;
struct Value;

enum class ElementType : int {
  unspecified = 0,
  f32 = 1,
  u8 = 2,
  i8 = 3,
  i32 = 6,
  i64 = 7,
  f16 = 10,
  bf16 = 16
};
enum class ErrorCode : int { runtime_exception = 6 };
enum class LogLevel : int { fatal = 4 };

struct Api {
  Status* (*create_status)(ErrorCode, const char* message);
  const char* (*get_error_message)(const Status*);
  Status* (*create_env)(LogLevel, const char* id, Env**);
  Status* (*create_session)(const Env*, const char* path, const SessionOptions*, Session**);
  Status* (*create_session_from_array)(const Env*, const void* graph, std::size_t bytes,
                                       const SessionOptions*, Session**);
  Status* (*run)(Session*, const RunOptions*, const char* const* input_names,
                 const Value* const* inputs, std::size_t num_inputs,
                 const char* const* output_names, std::size_t num_outputs, Value** outputs);
  Status* (*create_session_options)(SessionOptions**);
  Status* (*set_graph_optimization_level)(SessionOptions*, int);
  Status* (*set_intra_op_num_threads)(SessionOptions*, int);
  Status* (*create_custom_op_domain)(const char* name, CustomOpDomain**);
  Status* (*add_to_custom_op_domain)(CustomOpDomain*, const CustomOp*);
  Status* (*add_custom_op_domain)(SessionOptions*, CustomOpDomain*);
  Status* (*create_tensor_with_data)(const MemoryInfo*, void*, std::size_t bytes,
                                     const std::int64_t* shape, std::size_t rank, ElementType,
                                     Value**);
  Status* (*get_tensor_data)(Value*, void**);
  Status* (*get_element_type)(const TensorInfo*, ElementType*);
  Status* (*get_dimensions_count)(const TensorInfo*, std::size_t*);
  Status* (*get_dimensions)(const TensorInfo*, std::int64_t*, std::size_t);
  Status* (*get_tensor_info)(const Value*, TensorInfo**);
  Status* (*create_memory_info)(const char* name, int allocator_type, int device, int memory_type,
                                MemoryInfo**);
  Status* (*allocator_alloc)(Allocator*, std::size_t, void**);
  Status* (*allocator_free)(Allocator*, void*);
  Status* (*get_float_attribute)(const KernelInfo*, const char* name, float*);
  Status* (*get_int_attribute)(const KernelInfo*, const char* name, std::int64_t*);
  Status* (*get_kernel_input)(const KernelContext*, std::size_t, const Value**);
  Status* (*get_kernel_output)(KernelContext*, std::size_t, const std::int64_t* shape,
                               std::size_t rank, Value**);
  Status* (*get_node_name)(const KernelInfo*, char* name, std::size_t* size);
  Status* (*get_output_name)(const KernelInfo*, std::size_t, char* name, std::size_t* size);
  Status* (*get_constant_input)(const KernelInfo*, std::size_t, int* is_constant, const Value**);
  void (*release_env)(Env*);
  void (*release_status)(Status*);
  void (*release_memory_info)(MemoryInfo*);
  void (*release_session)(Session*);
  void (*release_value)(Value*);
  void (*release_tensor_info)(TensorInfo*);
  void (*release_session_options)(SessionOptions*);
  void (*release_custom_op_domain)(CustomOpDomain*);
  Status* (*get_available_providers)(char***, int*);
  Status* (*release_available_providers)(char**, int);
  Status* (*add_session_config_entry)(SessionOptions*, const char* key, const char* value);
  Status* (*create_allocator)(const Session*, const MemoryInfo*, Allocator**);
  void (*release_allocator)(Allocator*);
  Status* (*append_cuda)(SessionOptions*, const CudaOptions*);
  Status* (*create_cuda_options)(CudaOptions**);
  Status* (*update_cuda_options)(CudaOptions*, const char* const* keys, const char* const* values,
                                 std::size_t);
  void (*release_cuda_options)(CudaOptions*);
  Status* (*append_provider)(SessionOptions*, const char* name, const char* const* keys,
                             const char* const* values, std::size_t);
  Status* (*parallel_for)(const KernelContext*, void (*task)(void* data, std::size_t index),
                          std::size_t num_tasks, std::size_t num_batches, void* data);
};

// An operator of ours, as the C API takes it from version 18 on. Members that are null are left to
// ONNX Runtime.
struct CustomOp {
  enum class Presence : int { required = 0, optional = 1 };

  std::uint32_t version;
  void* (*create_kernel)(const CustomOp*, const void* api, const KernelInfo*);
  const char* (*get_name)(const CustomOp*);
  const char* (*get_provider)(const CustomOp*);  // null: the CPU's
  ElementType (*get_input_type)(const CustomOp*, std::size_t);
  std::size_t (*get_input_count)(const CustomOp*);
  ElementType (*get_output_type)(const CustomOp*, std::size_t);
  std::size_t (*get_output_count)(const CustomOp*);
  void (*compute)(void* kernel, KernelContext*);
  void (*destroy_kernel)(void* kernel);
  Presence (*get_input_presence)(const CustomOp*, std::size_t);
  Presence (*get_output_presence)(const CustomOp*, std::size_t);
  int (*get_input_memory)(const CustomOp*, std::size_t);
  int (*get_variadic_input_min_arity)(const CustomOp*);
  int (*get_variadic_input_homogeneity)(const CustomOp*);
  int (*get_variadic_output_min_arity)(const CustomOp*);
  int (*get_variadic_output_homogeneity)(const CustomOp*);
  Status* (*create_kernel_v2)(const CustomOp*, const void* api, const KernelInfo*, void** kernel);
  Status* (*compute_v2)(void* kernel, KernelContext*);
  Status* (*infer_shapes)(const CustomOp*, void* context);
  int (*get_start_version)(const CustomOp*);
  int (*get_end_version)(const CustomOp*);
  std::size_t (*get_in_place)(int** inputs, int** outputs);
  void (*release_in_place)(int* inputs, int* outputs);
  std::size_t (*get_aliases)(int** inputs, int** outputs);
  void (*release_aliases)(int* inputs, int* outputs);
};

// What a library exports.
struct ApiBase {
  const void* const* (*get_api)(std::uint32_t version);
  const char* (*get_version_string)();
};

Api load_api(const void* const* table);

// Owns one of ONNX Runtime's objects.
template <class T>
using Handle = std::unique_ptr<T, void (*)(T*)>;

}  // namespace pard::ort

namespace pard {

// Where to look for ONNX Runtime; the first place that has it with the provider wins.
struct OrtSearch {
  std::string path;  // a library, or a directory with libraries; given: nothing else is tried
  std::vector<std::string> directories;  // site-packages directories, where wheels lie
};

// One ONNX Runtime library, opened at run time. It stays loaded until the process ends.
class OrtLibrary {
 public:
  // ONNX Runtime 1.20 and later; docs/cpp.md says which folders need more.
  static constexpr std::uint32_t api_version = 20;

  // Tries search.path; without one the environment variable PARD_RT_ONNXRUNTIME, then
  // search.directories, then what the system's loader finds. `provider` is cpu, cuda, migraphx or
  // rocm. Throws RuntimeMissing where no library is usable or none has the provider, and
  // InvalidArgument for another provider's name.
  static std::shared_ptr<const OrtLibrary> open(const OrtSearch& search = {},
                                                std::string_view provider = "cpu");

  OrtLibrary(const OrtLibrary&) = delete;
  OrtLibrary& operator=(const OrtLibrary&) = delete;

  const std::string& path() const { return path_; }
  const std::string& version() const { return version_; }
  bool is_at_least(int minor) const;  // 1.minor or later

  // Names as above and as ONNX Runtime's own for others; compiled in, which does not say that they
  // work on this machine.
  const std::vector<std::string>& providers() const { return providers_; }
  bool has_provider(std::string_view provider) const;

  const ort::Api& api() const { return api_; }
  const ort::Env* env() const { return env_.get(); }

  // A function the library exports by name; null where it does not.
  void* symbol(const char* name) const;

  // Throws ModelError with ONNX Runtime's own message where `status` is one. `what` completes "ONNX
  // Runtime could not ...".
  void check(ort::Status* status, std::string_view what,
             const char* remedy = "Its message says what is wrong with graph or machine.") const;

 private:
  explicit OrtLibrary(const std::string& path);

  std::string path_;
  std::string version_;
  void* handle_ = nullptr;
  ort::Api api_{};
  ort::Handle<ort::Env> env_{nullptr, nullptr};
  std::vector<std::string> providers_;
};

}  // namespace pard
