// Stands in for the toolkit's header: the kernels use the type as a tag only.
#pragma once

struct __half {};
