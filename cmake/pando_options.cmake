# Compiler options that every target of this project shares; never exported to consumers.
add_library(pando_options INTERFACE)
target_compile_options(pando_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Werror;-fno-math-errno>)

set(PANDO_SANITIZE "" CACHE STRING "Sanitizers, such as address,undefined or thread")
if(PANDO_SANITIZE)
  add_compile_options(-fsanitize=${PANDO_SANITIZE} -fno-omit-frame-pointer
                      -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${PANDO_SANITIZE})
endif()
