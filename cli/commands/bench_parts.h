// What `pando bench` is made of besides its loop.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cases/measure.h"
#include "cases/shapes_table.h"
#include "commands/commands.h"
#include "commands/common.h"

namespace pando::cli {

/// The shapes that the options name, at their head_dim.
std::vector<cases::Shape> chosen_shapes(const BenchOptions& options);
/// What a record says of the case.
Json shape_json(const cases::Shape& shape, const BenchOptions& options);
Json timing_json(const cases::Timing& timing);
/// How the shapes are planned.
PlanOptions plan_options(const BenchOptions& options);

/// `pando bench --plan-only`: host times of discover, update and plan, for any profile.
int run_plan_bench(const BenchOptions& options);

/// Records of an earlier `pando bench`, to which new ones are compared.
class EarlierRecords {
 public:
  static constexpr double kMostSlower = 1.05;

  /// Throws kIo for a file that can't be read, kInvalidArgument for one that holds no records.
  explicit EarlierRecords(const std::string& path);

  /// New time over the earlier one of the same case on the same device; the record gets it too.
  /// None where there is no such record.
  std::optional<double> compare(Json& record);
  /// How many records had a counterpart.
  int compared() const { return compared_; }
  /// The verdict, on stderr; the number of cases that are more than 5 % slower. Throws
  /// kInvalidArgument when nothing could be compared.
  int report() const;

 private:
  struct Compared {
    std::string shape;
    double before_us;
    double now_us;
  };

  std::string path_;
  std::map<std::string, double> median_us_;  ///< by what makes two cases the same
  std::vector<Compared> slower_;
  int compared_ = 0;
};

}  // namespace pando::cli
