// Each file of functions registers its own; module.cc calls them when the library is loaded.
#pragma once

namespace pando::python {

void register_plans();
void register_attend();
void register_prefix();
void register_forest();
void register_quantize();
void register_info();

}  // namespace pando::python
