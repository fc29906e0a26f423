# cmake -P script of the install test; see CMakeLists.txt for the variables.
function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ECHO STDOUT COMMAND_ERROR_IS_FATAL ANY)
endfunction()

set(flags "")
if(sanitize)
  set(flags -fsanitize=${sanitize})
endif()

file(REMOVE_RECURSE ${work})
run(${CMAKE_COMMAND} --install ${pando_build} --prefix ${work}/prefix)
run(${CMAKE_COMMAND} -S ${examples} -B ${work}/build -G ${generator}
    -D CMAKE_PREFIX_PATH=${work}/prefix -D CMAKE_CXX_COMPILER=${compiler}
    -D CMAKE_CXX_FLAGS=${flags} -D CMAKE_BUILD_TYPE=Release)
run(${CMAKE_COMMAND} --build ${work}/build)
run(${work}/build/shared_prefix)
run(${work}/build/decode_loop)
