// What is there as soon as Python has loaded the library.
#include <string>

#include "binding.h"
#include "core/tolerance.h"
#include "pando/cpu.h"
#include "pando/cuda.h"
#include "pando/version.h"
#include "plan/variants.h"
#include "registration.h"

namespace pando::python {
namespace {

ffi::String version_text() { return version(); }
ffi::String simd_name() { return std::string(cpu_simd_name()); }
int64_t cuda_devices() { return cuda_device_count(); }
ffi::String cuda_why_not(int64_t device) { return cuda_unavailable(narrow("device", device)); }

/// Names of the variants of attention that a backend supports, with commas between them.
ffi::String variant_names(int64_t backend) {
  return variants_text(static_cast<Backend>(narrow("backend", backend)));
}

/// (of the output, of the LSE): how far a result may be from the oracle; core/tolerance.h.
ffi::Array<double> tolerance_of(int64_t dtype, double rounded_err_out, double rounded_err_lse,
                                double max_abs_out, double max_abs_lse) {
  const ErrorStats rounded{.max_err_out = rounded_err_out,
                           .max_err_lse = rounded_err_lse,
                           .max_abs_out = max_abs_out,
                           .max_abs_lse = max_abs_lse};
  const Tolerance allowed = tolerance(rounded, static_cast<DType>(narrow("dtype", dtype)));
  return {allowed.out, allowed.lse};
}

}  // namespace

void register_info() {
  ffi::reflection::GlobalDef()
      .def("pando_attn.version", Guarded<&version_text>::call)
      .def("pando_attn.tolerance", Guarded<&tolerance_of>::call)
      .def("pando_attn.simd_name", Guarded<&simd_name>::call)
      .def("pando_attn.variants", Guarded<&variant_names>::call)
      .def("pando_attn.cuda_devices", Guarded<&cuda_devices>::call)
      .def("pando_attn.cuda_unavailable", Guarded<&cuda_why_not>::call);
}

}  // namespace pando::python

TVM_FFI_STATIC_INIT_BLOCK() {
  pando::python::register_plans();
  pando::python::register_attend();
  pando::python::register_prefix();
  pando::python::register_forest();
  pando::python::register_quantize();
  pando::python::register_info();
}
