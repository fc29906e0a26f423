# CUDA for sm_90a: nvcc 12.8 or later, or a clear refusal.
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "PANDO_CUDA is ON, but there is no nvcc on PATH or in CUDACXX")
endif()
set(CMAKE_CUDA_ARCHITECTURES OFF)  # each target names its own
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
  message(FATAL_ERROR "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is too old: 12.8 or later is needed")
endif()
find_package(CUDAToolkit REQUIRED)

# CMake before 3.25.2 does not know that nvcc 12 and later have C++20.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  list(APPEND CMAKE_CUDA_COMPILE_FEATURES cuda_std_20)
endif()
