# cmake --install: library, headers and the package files for find_package(pando).
