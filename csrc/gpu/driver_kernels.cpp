#include <dlfcn.h>

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
  std::array<const char*, 2> libraries;
  const char* init;
  const char* load;
  const char* unload;
  const char* get_function;
  const char* launch;
  const char* allocate;
  const char* free;
  const char* write;
  const char* read;
};

constexpr DriverNames cuda{"CUDA",           {"libcuda.so.1", "libcuda.so"},
                           "cuInit",         "cuModuleLoadData",
                           "cuModuleUnload", "cuModuleGetFunction",
                           "cuLaunchKernel", "cuMemAlloc_v2",
                           "cuMemFree_v2",   "cuMemcpyHtoD_v2",
                           "cuMemcpyDtoH_v2"};
constexpr DriverNames hip{"HIP",
                          {"libamdhip64.so", "libamdhip64.so.6"},
                          "hipInit",
                          "hipModuleLoadData",
                          "hipModuleUnload",
                          "hipModuleGetFunction",
                          "hipModuleLaunchKernel",
                          "hipMalloc",
                          "hipFree",
                          "hipMemcpyHtoD",
                          "hipMemcpyDtoH"};

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
    int (*init)(unsigned) = nullptr;
    find(names.init, init);
    require(init(0), "starting the driver");
    load(code_objects);
    require(get_function_(&build_input_, module_, "pard_build_input"), "finding a kernel");
    require(get_function_(&choose_, module_, "pard_choose_and_verify"), "finding a kernel");
  }

  // The library stays open: others use it too.
  ~DriverKernels() override { unload_(module_); }
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
    check(allocate_(&data, bytes), "allocate " + std::to_string(bytes) + " bytes");
    return {data, free_};
  }

  void write(void* to, const void* from, std::size_t bytes) const override {
    check(write_(to, from, bytes), "copy to the device");
  }

  void read(void* to, const void* from, std::size_t bytes) const override {
    check(read_(to, from, bytes), "copy from the device");
  }

 private:
  // A driver refuses the code of other cards.
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
      tried += (tried.empty() ? "" : ", ") + name + " (result " + std::to_string(result) + ")";
    }
    throw RuntimeMissing(
        {std::string("There is no code object for this card"),
         std::string("one that the ") + names_.name + " driver takes",
         tried.empty() ? "none: the package was built without GPU compilers" : tried,
         "Build the package where clang++ 19 and lld (AMD) or nvcc (NVIDIA) are installed."});
  }

  // One that the process has loaded already goes first: PyTorch may have brought its own.
  void open_library() {
    for (const int flags : {RTLD_NOW | RTLD_NOLOAD, RTLD_NOW}) {
      for (const char* library : names_.libraries) {
        if (!library_) library_ = dlopen(library, flags);
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
};

}  // namespace

std::unique_ptr<KernelSet> load_kernels(Driver driver,
                                        const std::vector<std::string>& code_objects) {
  return std::make_unique<DriverKernels>(driver == Driver::cuda ? cuda : hip, code_objects);
}

}  // namespace pard::gpu
