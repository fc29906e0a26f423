# Decides whether the CUDA backend is built, for sm_90a by nvcc 12.8 or later: sets PANDO_HAS_CUDA, and
# PANDO_CUDA_FLAGS for the targets that compile CUDA.
set(PANDO_HAS_CUDA OFF)
if(NOT PANDO_CUDA)
  return()
endif()

# Tells why there is no CUDA backend, and stops where one was asked for.
function(pando_without_cuda why)
  if(PANDO_CUDA STREQUAL "AUTO")
    message(STATUS "No CUDA backend: ${why}")
  else()
    message(FATAL_ERROR "PANDO_CUDA is ${PANDO_CUDA}, but ${why}")
  endif()
endfunction()

# Where the toolkit's installer puts nvcc, it is not on PATH.
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(pando_nvcc nvcc HINTS /usr/local/cuda/bin)
  mark_as_advanced(pando_nvcc)
  if(pando_nvcc)
    set(CMAKE_CUDA_COMPILER ${pando_nvcc})
  endif()
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  pando_without_cuda("there is no nvcc on PATH, in CUDACXX or in /usr/local/cuda")
  return()
endif()
set(CMAKE_CUDA_ARCHITECTURES OFF)  # the flags below name the one
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
  pando_without_cuda("nvcc ${CMAKE_CUDA_COMPILER_VERSION} is too old: 12.8 or later is needed")
  return()
endif()
find_package(CUDAToolkit REQUIRED)

# CMake before 3.25.2 does not know that nvcc 12 and later have C++20.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  list(APPEND CMAKE_CUDA_COMPILE_FEATURES cuda_std_20)
endif()

set(PANDO_HAS_CUDA ON)
set(PANDO_CUDA_FLAGS -gencode=arch=compute_90a,code=sm_90a --expt-relaxed-constexpr
                     -Xcompiler=-Wall,-Wextra)
# A third of the size. Older drivers cannot read it, but none of those knows CUDA 13.
if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13)
  list(APPEND PANDO_CUDA_FLAGS -compress-mode=size)
endif()
if(PANDO_WERROR)
  list(APPEND PANDO_CUDA_FLAGS -Werror all-warnings)
endif()

# Kernels that tell when they came to which stage, and are slower for it; `pando bench` prints it.
option(PANDO_TIMELINE "Take the time of the stages of the CUDA kernels" OFF)
if(PANDO_TIMELINE)
  list(APPEND PANDO_CUDA_FLAGS -DPANDO_TIMELINE)
endif()
