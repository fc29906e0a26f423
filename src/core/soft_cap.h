// tanh near 0, for soft caps: one polynomial for every backend.
#pragma once

namespace pando {

/// tanh(x) = x + x^3 p(x^2) for |x| below kTanhNear, with the coefficients of p from the first on.
inline constexpr float kTanhNear = 0.625f;
inline constexpr float kTanhNear1 = -3.33332819422e-1f;
inline constexpr float kTanhNear2 = 1.33314422036e-1f;
inline constexpr float kTanhNear3 = -5.37397155531e-2f;
inline constexpr float kTanhNear4 = 2.06390887954e-2f;
inline constexpr float kTanhNear5 = -5.70498872745e-3f;

}  // namespace pando
