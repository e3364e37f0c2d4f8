#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "kernel_set.h"
#include "pard/error.h"

namespace pard::gpu {

namespace {

constexpr int lanes_per_block = 512;  // what the code objects are built for

// The functions that CUDA's and HIP's drivers have alike. Handles and addresses are pointers,
// results integers.
struct DriverNames {
  const char* name;
  std::array<const char*, 3> libraries;  // the rest null
  const char* init;
  const char* load;
  const char* unload;
  const char* get_function;
  const char* launch;
  const char* allocate;
  const char* free;
  const char* write;
  const char* read;
  const char* get_current;  // a context, or a device's number
  const char* set_current;
  const char* forget_error;              // null where one is not kept for the next caller to find
  std::array<int, 4> not_for_this_card;  // results of a load
};

constexpr DriverNames cuda{
    .name = "CUDA",
    .libraries = {"libcuda.so.1", "libcuda.so"},
    .init = "cuInit",
    .load = "cuModuleLoadData",
    .unload = "cuModuleUnload",
    .get_function = "cuModuleGetFunction",
    .launch = "cuLaunchKernel",
    .allocate = "cuMemAlloc_v2",
    .free = "cuMemFree_v2",
    .write = "cuMemcpyHtoD_v2",
    .read = "cuMemcpyDtoH_v2",
    .get_current = "cuCtxGetCurrent",
    .set_current = "cuCtxSetCurrent",
    .forget_error = nullptr,
    .not_for_this_card = {200, 209, 218, 222},  // image, no binary, PTX, PTX newer than the driver
};
constexpr DriverNames hip{
    .name = "HIP",
    .libraries = {"libamdhip64.so", "libamdhip64.so.7", "libamdhip64.so.6"},
    .init = "hipInit",
    .load = "hipModuleLoadData",
    .unload = "hipModuleUnload",
    .get_function = "hipModuleGetFunction",
    .launch = "hipModuleLaunchKernel",
    .allocate = "hipMalloc",
    .free = "hipFree",
    .write = "hipMemcpyHtoD",
    .read = "hipMemcpyDtoH",
    .get_current = "hipGetDevice",
    .set_current = "hipSetDevice",
    .forget_error = "hipGetLastError",
    .not_for_this_card = {98, 200, 209, 303},  // function, image, no binary, shared object
};

class DriverKernels final : public KernelSet {
 public:
  DriverKernels(const DriverNames& names, const std::vector<std::string>& code_objects)
      : names_(names) {
    open_library();
    find(names.load, load_);
    find(names.unload, unload_);
    find(names.get_function, get_function_);
    find(names.launch, launch_);
    find(names.allocate, allocate_);
    find(names.free, free_);
    find(names.write, write_);
    find(names.read, read_);
    find(names.get_current, get_current_);
    find(names.set_current, set_current_);
    if (names.forget_error != nullptr) find(names.forget_error, forget_error_);
    int (*init)(unsigned) = nullptr;
    find(names.init, init);
    require(init(0), "starting the driver");
    require(get_current_(&current_), "asking for the current device");
    load(code_objects);
    require(get_function_(&build_input_, module_, "pard_build_input"), "finding a kernel");
    require(get_function_(&choose_, module_, "pard_choose_and_verify"), "finding a kernel");
  }

  // The library stays open: others use it too.
  ~DriverKernels() override {
    set_current_(current_);
    unload_(module_);
  }
  DriverKernels(const DriverKernels&) = delete;
  DriverKernels& operator=(const DriverKernels&) = delete;

  void build_input(const DraftInputArgs& args, int num_slots, void* stream) const override {
    launch(build_input_, num_slots, 1, args, stream);
  }

  void choose_and_verify(const ChooseArgs& args, int num_slots, void* stream) const override {
    launch(choose_, args.num_rows, num_slots, args, stream);
  }

  std::string code_object() const override { return code_object_; }

  std::shared_ptr<void> allocate(std::size_t bytes) const override {
    void* data = nullptr;
    set_current_(current_);
    check(allocate_(&data, bytes), "allocate " + std::to_string(bytes) + " bytes");
    return {data, [set = set_current_, current = current_, free = free_](void* block) {
              set(current);
              free(block);
            }};
  }

  void write(void* to, const void* from, std::size_t bytes) const override {
    set_current_(current_);
    check(write_(to, from, bytes), "copy to the device");
  }

  void read(void* to, const void* from, std::size_t bytes) const override {
    set_current_(current_);
    check(read_(to, from, bytes), "copy from the device");
  }

 private:
  // A driver refuses the code of other cards, so no card's name has to be known.
  void load(const std::vector<std::string>& code_objects) {
    std::string tried;
    for (const std::string& code_object : code_objects) {
      std::ifstream file(code_object, std::ios::binary);
      std::vector<char> code{std::istreambuf_iterator<char>(file), {}};
      if (code.empty()) continue;
      code.push_back('\0');  // PTX is text and must end
      const int result = load_(&module_, code.data());
      const std::string name = code_object.substr(code_object.rfind('/') + 1);
      if (result == 0) {
        code_object_ = name;
        return;
      }
      if (forget_error_ != nullptr) forget_error_();
      const auto& others = names_.not_for_this_card;
      if (std::find(others.begin(), others.end(), result) == others.end()) {
        require(result, "loading " + name);
      }
      tried += (tried.empty() ? "" : ", ") + name + " (result " + std::to_string(result) + ")";
    }
    throw RuntimeMissing(
        {std::string("There is no code object for this card"),
         std::string("one that the ") + names_.name + " driver takes",
         tried.empty() ? "none: the package was built without GPU compilers" : tried,
         "Build the package where clang++ 19 and lld (AMD) or nvcc (NVIDIA) are installed; a "
         "driver "
         "may also be too old for the code."});
  }

  // One that the process has loaded already goes first: PyTorch may have brought its own.
  void open_library() {
    for (const int flags : {RTLD_NOW | RTLD_NOLOAD, RTLD_NOW}) {
      for (const char* library : names_.libraries) {
        if (library_ == nullptr && library != nullptr) library_ = dlopen(library, flags);
      }
    }
    if (library_) return;
    throw RuntimeMissing({std::string("There is no ") + names_.name + " driver",
                          names_.libraries[0], "nothing that dlopen finds",
                          "Install the card's driver, or decode on the CPU."});
  }

  template <class Function>
  void find(const char* symbol, Function& function) const {
    function = reinterpret_cast<Function>(dlsym(library_, symbol));
    if (function) return;
    throw RuntimeMissing({std::string("The ") + names_.name + " driver is too old", symbol,
                          "no such function", "Update the card's driver."});
  }

  void require(int result, const std::string& what) const {
    if (result == 0) return;
    throw RuntimeMissing(
        {std::string("The ") + names_.name + " driver failed at " + what, "result 0",
         std::to_string(result),
         "Check that the driver knows the card and is as new as the code object."});
  }

  template <class Args>
  void launch(void* kernel, int width, int height, const Args& args, void* stream) const {
    Args copy = args;
    void* parameters[] = {&copy};
    set_current_(current_);
    const auto x = static_cast<unsigned>(width), y = static_cast<unsigned>(height);
    const int result =
        launch_(kernel, x, y, 1, lanes_per_block, 1, 1, 0, stream, parameters, nullptr);
    check(result, "launch a kernel");
  }

  void check(int result, const std::string& what) const {
    if (result == 0) return;
    throw ModelError({std::string("The ") + names_.name + " driver did not " + what, "result 0",
                      std::to_string(result),
                      "Earlier work on the device may have failed: restart the process."});
  }

  const DriverNames& names_;
  void* library_ = nullptr;
  std::string code_object_;
  void* current_ = nullptr;  // the device that the module is loaded for, as the driver names it
  void* module_ = nullptr;
  void* build_input_ = nullptr;
  void* choose_ = nullptr;
  int (*load_)(void**, const void*) = nullptr;
  int (*unload_)(void*) = nullptr;
  int (*get_function_)(void**, void*, const char*) = nullptr;
  int (*launch_)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*,
                 void**, void**) = nullptr;
  int (*allocate_)(void**, std::size_t) = nullptr;
  int (*free_)(void*) = nullptr;
  int (*write_)(void*, const void*, std::size_t) = nullptr;
  int (*read_)(void*, const void*, std::size_t) = nullptr;
  int (*get_current_)(void**) = nullptr;
  int (*set_current_)(void*) = nullptr;
  int (*forget_error_)() = nullptr;
};

}  // namespace

std::unique_ptr<KernelSet> load_kernels(Driver driver,
                                        const std::vector<std::string>& code_objects) {
  return std::make_unique<DriverKernels>(driver == Driver::cuda ? cuda : hip, code_objects);
}

}  // namespace pard::gpu
