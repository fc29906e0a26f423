// Everything: page tables -> discover -> plan -> attend.
#pragma once

#include "pando/attention.h"    // IWYU pragma: export
#include "pando/batch.h"        // IWYU pragma: export
#include "pando/cpu.h"          // IWYU pragma: export
#include "pando/cuda.h"         // IWYU pragma: export
#include "pando/error.h"        // IWYU pragma: export
#include "pando/forest.h"       // IWYU pragma: export
#include "pando/kv_pool.h"      // IWYU pragma: export
#include "pando/merge.h"        // IWYU pragma: export
#include "pando/plan.h"         // IWYU pragma: export
#include "pando/prefix_tree.h"  // IWYU pragma: export
#include "pando/profile.h"      // IWYU pragma: export
#include "pando/quantize.h"     // IWYU pragma: export
#include "pando/version.h"      // IWYU pragma: export
