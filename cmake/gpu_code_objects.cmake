# The kernels of csrc/gpu, compiled ahead of time to code objects that a driver loads: for AMD by clang
# alone (no ROCm), for NVIDIA by nvcc alone. What no compiler is there for is left out, and said. A
# kernel whose registers are not enough fails the build.
set(PARD_AMD_TARGETS gfx90a gfx942 gfx1100 gfx1201 gfx11-generic)
set(PARD_NVIDIA_TARGETS sm_80 sm_90 compute_80)  # the last is PTX, for cards to come

set(kernels ${PROJECT_SOURCE_DIR}/csrc/gpu/kernels.hip)
file(GLOB kernel_headers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/gpu/*.h)
list(APPEND kernel_headers ${PROJECT_SOURCE_DIR}/src/pard/noise.h ${PROJECT_SOURCE_DIR}/src/pard/choose_arithmetic.h)
set(code_folder ${PROJECT_BINARY_DIR}/gpu)
file(MAKE_DIRECTORY ${code_folder})

# Every multiplication and addition rounded by itself, as on the host (see src/pard/noise.h).
set(amd_flags -x hip -nogpuinc -nogpulib -std=c++20 -O3 -ffp-contract=off -Wall -Wextra -Werror
              -I${PROJECT_SOURCE_DIR}/src --cuda-device-only --no-gpu-bundle-output)
set(nvidia_flags -x cu -std=c++20 -O3 -fmad=false --expt-relaxed-constexpr -diag-suppress 1675
                 -I${PROJECT_SOURCE_DIR}/src -Xptxas -warn-spills,-Werror)

# The first clang that builds for AMD, or the one that is named: it needs lld and readelf of its own
# version.
function(find_amd_clang)
  set(named ${PARD_AMD_CLANG} $ENV{PARD_AMD_CLANG})
  set(candidates clang++-22 clang++-21 clang++-20 clang++-19 clang++ /opt/rocm/llvm/bin/clang++)
  if(named)
    list(GET named 0 candidates)
  endif()
  file(WRITE ${code_folder}/probe.hip "__attribute__((global)) void probe() {}\n")
  foreach(name ${candidates})
    find_program(clang ${name} NO_CACHE)
    if(clang)
      execute_process(COMMAND ${clang} ${amd_flags} --offload-arch=gfx1201 ${code_folder}/probe.hip -o ${code_folder}/probe
                      RESULT_VARIABLE failed OUTPUT_QUIET ERROR_QUIET)
      if(NOT failed)
        execute_process(COMMAND ${clang} -print-prog-name=llvm-readelf OUTPUT_VARIABLE readelf OUTPUT_STRIP_TRAILING_WHITESPACE)
        set(PARD_AMD_CLANG ${clang} CACHE FILEPATH "clang++ for AMD code objects" FORCE)
        set(PARD_PROBED_CLANG ${clang} CACHE INTERNAL "")
        set(PARD_READELF ${readelf} CACHE FILEPATH "readelf of that clang" FORCE)
        break()
      endif()
    endif()
    unset(clang)
  endforeach()
  file(REMOVE ${code_folder}/probe ${code_folder}/probe.hip)
  if(named AND NOT clang)
    message(FATAL_ERROR "PARD_AMD_CLANG: '${candidates}' does not build for AMD. Name a clang++ with lld and llvm-readelf, or none.")
  endif()
endfunction()
if(NOT PARD_READELF OR NOT PARD_AMD_CLANG STREQUAL PARD_PROBED_CLANG)
  find_amd_clang()
endif()
find_program(PARD_NVCC nvcc PATHS /usr/local/cuda/bin)

set(code_objects)
if(PARD_READELF)
  foreach(target ${PARD_AMD_TARGETS})
    set(object ${code_folder}/${target}.hsaco)
    # Generic targets need version 6 of the code object format, which clang 19 calls unfinished.
    set(format)
    if(target MATCHES generic)
      set(format -mcode-object-version=6 -Wno-error)
    endif()
    add_custom_command(
      OUTPUT ${object}
      COMMAND ${PARD_AMD_CLANG} ${amd_flags} ${format} --offload-arch=${target} ${kernels} -o ${object}
      COMMAND ${CMAKE_COMMAND} -DREADELF=${PARD_READELF} -DOBJECT=${object} -P ${CMAKE_CURRENT_LIST_DIR}/check_spills.cmake
      DEPENDS ${kernels} ${kernel_headers} ${CMAKE_CURRENT_LIST_DIR}/check_spills.cmake VERBATIM)
    list(APPEND code_objects ${object})
  endforeach()
endif()
if(PARD_NVCC)
  foreach(target ${PARD_NVIDIA_TARGETS})
    set(form cubin)
    if(target MATCHES compute)
      set(form ptx)
    endif()
    set(object ${code_folder}/${target}.${form})
    add_custom_command(OUTPUT ${object}
                       COMMAND ${PARD_NVCC} ${nvidia_flags} -${form} -arch=${target} ${kernels} -o ${object}
                       DEPENDS ${kernels} ${kernel_headers} VERBATIM)
    list(APPEND code_objects ${object})
  endforeach()
endif()
if(NOT PARD_READELF)
  message(WARNING "GPU CODE LEFT OUT: AMD's, for want of a clang++ 19 or later with lld")
endif()
if(NOT PARD_NVCC)
  message(WARNING "GPU CODE LEFT OUT: NVIDIA's, for want of nvcc")
endif()

add_custom_target(pard_gpu_code ALL DEPENDS ${code_objects})
install(FILES ${code_objects} DESTINATION pard_rt/gpu COMPONENT python)
