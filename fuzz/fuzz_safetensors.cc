// Any bytes as a safetensors file and as a case: they are read or refused, never anything else.
#include <algorithm>
#include <cstdint>
#include <span>

#include "cases/case_file.h"
#include "cases/safetensors.h"
#include "expect.h"
#include "pando/error.h"

using pando::fuzz::expect;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = std::as_bytes(std::span(data, size));
  try {
    const pando::cases::Safetensors parsed = pando::cases::parse_safetensors(file, "fuzz");
    size_t bytes = 0;
    for (const auto& tensor : parsed.tensors) {
      expect(tensor.data.empty() ||
                 (tensor.data.data() >= file.data() &&
                  tensor.data.data() + tensor.data.size() <= file.data() + file.size()),
             "a tensor lies inside the file");
      int64_t want = pando::cases::safetensors_dtype_bytes(tensor.dtype);
      if (std::ranges::count(tensor.shape, 0) > 0) want = 0;
      for (size_t i = 0; want > 0 && i < tensor.shape.size(); ++i) want *= tensor.shape[i];
      expect(want == static_cast<int64_t>(tensor.data.size()),
             "a tensor has the bytes of its shape");
      expect(parsed.find(tensor.name) == &tensor, "a tensor is found by its name");
      bytes += tensor.data.size();
    }
    expect(bytes <= size, "tensors do not overlap");
  } catch (const pando::Error& error) {
    expect(error.code == pando::ErrorCode::kIo, "a bad file is an I/O error");
  }
  try {
    const pando::cases::Case problem = pando::cases::parse_case(file, "fuzz");
    // What is returned is consistent: the forest of its tables can be found.
    pando::discover(problem.tables.batch());
  } catch (const pando::Error& error) {
    expect(error.code == pando::ErrorCode::kIo, "a bad case is an I/O error");
  }
  return 0;
}
