# cmake --install: library, headers, program and the package files for find_package(pando).
include(CMakePackageConfigHelpers)

set(pando_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/pando)

install(TARGETS pando EXPORT pandoTargets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/pando
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
install(EXPORT pandoTargets NAMESPACE pando:: DESTINATION ${pando_package_dir})

# A static library leaves its own dependencies to the program that links it.
if(BUILD_SHARED_LIBS)
  set(PANDO_STATIC OFF)
else()
  set(PANDO_STATIC ON)
endif()
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/pandoConfig.cmake.in
  ${PROJECT_BINARY_DIR}/pandoConfig.cmake INSTALL_DESTINATION ${pando_package_dir})
# Before 1.0 a minor version may change the API.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/pandoConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/pandoConfig.cmake ${PROJECT_BINARY_DIR}/pandoConfigVersion.cmake
  DESTINATION ${pando_package_dir})

if(TARGET pando_cli)
  install(TARGETS pando_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
