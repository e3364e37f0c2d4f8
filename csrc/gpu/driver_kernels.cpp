#include <dlfcn.h>

#include <array>
#include <fstream>
#include <iterator>
#include <vector>

#include "kernel_set.h"
#include "pard/error.h"

namespace pard::gpu {

namespace {

constexpr int lanes_per_block = 512;  // what the code objects are built for

// The five functions that CUDA's and HIP's drivers have alike. Handles are pointers, results
// integers.
struct DriverNames {
  const char* name;
  std::array<const char*, 2> libraries;
  const char* init;
  const char* load;
  const char* unload;
  const char* get_function;
  const char* launch;
};

constexpr DriverNames cuda{
    "CUDA",           {"libcuda.so.1", "libcuda.so"}, "cuInit",        "cuModuleLoadData",
    "cuModuleUnload", "cuModuleGetFunction",          "cuLaunchKernel"};
constexpr DriverNames hip{"HIP",
                          {"libamdhip64.so", "libamdhip64.so.6"},
                          "hipInit",
                          "hipModuleLoadData",
                          "hipModuleUnload",
                          "hipModuleGetFunction",
                          "hipModuleLaunchKernel"};

class DriverKernels final : public KernelSet {
 public:
  DriverKernels(const DriverNames& names, const std::string& code_object) : names_(names) {
    open_library();
    find(names.load, load_);
    find(names.unload, unload_);
    find(names.get_function, get_function_);
    find(names.launch, launch_);
    int (*init)(unsigned) = nullptr;
    find(names.init, init);
    require(init(0), "starting the driver");

    std::ifstream file(code_object, std::ios::binary);
    const std::vector<char> code{std::istreambuf_iterator<char>(file), {}};
    if (code.empty()) {
      throw RuntimeMissing(
          {"There is no code object for this card", code_object, "nothing there",
           "Install a build with code for it, or decode without captured rounds."});
    }
    std::vector<char> text = code;  // PTX is text and must end
    text.push_back('\0');
    require(load_(&module_, text.data()), "loading " + code_object);
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

 private:
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
    if (result == 0) return;
    throw ModelError({std::string("The ") + names_.name + " driver did not launch a kernel",
                      "result 0", std::to_string(result),
                      "Earlier work on the device may have failed: restart the process."});
  }

  const DriverNames& names_;
  void* library_ = nullptr;
  void* module_ = nullptr;
  void* build_input_ = nullptr;
  void* choose_ = nullptr;
  int (*load_)(void**, const void*) = nullptr;
  int (*unload_)(void*) = nullptr;
  int (*get_function_)(void**, void*, const char*) = nullptr;
  int (*launch_)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*,
                 void**, void**) = nullptr;
};

}  // namespace

std::unique_ptr<KernelSet> load_kernels(Driver driver, const std::string& code_object) {
  return std::make_unique<DriverKernels>(driver == Driver::cuda ? cuda : hip, code_object);
}

}  // namespace pard::gpu
