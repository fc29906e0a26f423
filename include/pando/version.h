// Version of the library.
#pragma once

#define PANDO_VERSION_MAJOR 0
#define PANDO_VERSION_MINOR 1
#define PANDO_VERSION_PATCH 0

namespace pando {

/// "major.minor.patch" of the library that is linked.
const char* version();

}  // namespace pando
