// A forest as a picture for the terminal.
#pragma once

#include <string>

#include "pando/forest.h"
#include "pando/plan.h"
#include "term/style.h"

namespace pando::term {

/// One line a segment: a bar as long as its tokens, how many sequences hold it, and whether `plan`
/// reads it once for all of them. Siblings that look alike take one line together.
std::string forest_picture(const Forest& forest, const Plan& plan, const Style& style);

}  // namespace pando::term
