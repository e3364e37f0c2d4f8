#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernel_set.h"

namespace pard::python {

// The kernels of a driver: "host", "cuda" or "hip".
std::unique_ptr<gpu::KernelSet> open_kernels(const std::string& driver,
                                             const std::vector<std::string>& code_objects);

}  // namespace pard::python
