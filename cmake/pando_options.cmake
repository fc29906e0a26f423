# Compiler options that every target of this project shares; never exported to consumers.
option(PANDO_WERROR "Treat compiler warnings as errors" ${PROJECT_IS_TOP_LEVEL})
set(PANDO_SANITIZE "" CACHE STRING "Sanitizers, such as address,undefined or thread")

add_library(pando_options INTERFACE)
target_compile_options(pando_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-fno-math-errno>)
# GCC's flow-based warnings also look at what sanitizers insert, and are then often wrong.
if(PANDO_WERROR AND NOT PANDO_SANITIZE)
  target_compile_options(pando_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()

if(PANDO_SANITIZE)
  add_compile_options(-fsanitize=${PANDO_SANITIZE} -fno-omit-frame-pointer
                      -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${PANDO_SANITIZE})
endif()

# A shared library exports namespace pando and nothing of the libraries it is made with. A static
# one hides everything, so that a program or extension that links it does not export it by accident.
function(pando_limit_exports target)
  if(BUILD_SHARED_LIBS)
    set(script ${PROJECT_SOURCE_DIR}/cmake/pando_exports.map)
    target_link_options(${target} PRIVATE LINKER:--version-script=${script})
    set_target_properties(${target} PROPERTIES
      LINK_DEPENDS ${script}
      VERSION ${PROJECT_VERSION}
      SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
  else()
    set_target_properties(${target} PROPERTIES
      CXX_VISIBILITY_PRESET hidden
      VISIBILITY_INLINES_HIDDEN ON)
  endif()
endfunction()
