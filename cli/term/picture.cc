#include "term/picture.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

namespace pando::term {
namespace {

constexpr int kMaxLines = 40;
constexpr int kMaxDepth = 10;
constexpr int kBarCells = 24;
constexpr int kTextColumn = 60;  // where the remark starts

/// Siblings drawn as one line.
struct Group {
  int32_t first;  ///< a segment that stands for all
  int32_t count = 0;
  int32_t min_tokens = 0;
  int32_t max_tokens = 0;
};

class Picture {
 public:
  Picture(const Forest& forest, const Plan& plan, const Style& style)
      : segments_(forest.segments()), style_(style), children_(segments_.size()) {
    for (const Decision& decision : plan.decisions()) reasons_[decision.segment] = decision.reason;
    for (size_t i = 0; i < segments_.size(); ++i) {
      longest_ = std::max(longest_, segments_[i].tokens());
      const int32_t parent = segments_[i].parent;
      (parent < 0 ? roots_ : children_[parent]).push_back(static_cast<int32_t>(i));
    }
    // Children follow their parents, so going backwards sees them first.
    looks_.resize(segments_.size());
    for (size_t i = segments_.size(); i-- > 0;) looks_[i] = look(static_cast<int32_t>(i));
  }

  std::string draw() {
    draw_siblings(roots_, "  ", true);
    if (hidden_ > 0) text_ += fmt::format("  … and {} more lines\n", hidden_);
    return std::move(text_);
  }

 private:
  bool is_own(int32_t segment) const { return segments_[segment].sequences() == 1; }

  /// Equal numbers for subtrees that are drawn alike. Own tokens of any number look alike.
  int look(int32_t segment) {
    std::vector<int> key = {is_own(segment) ? 0 : segments_[segment].tokens(),
                            segments_[segment].sequences()};
    for (const Group& group : group_siblings(children_[segment])) {
      key.push_back(looks_[group.first]);
      key.push_back(group.count);
    }
    return look_numbers_.emplace(std::move(key), static_cast<int>(look_numbers_.size()))
        .first->second;
  }

  std::vector<Group> group_siblings(const std::vector<int32_t>& siblings) const {
    std::vector<Group> groups;
    std::map<int, size_t> group_of_look;
    for (const int32_t segment : siblings) {
      const auto [it, is_new] = group_of_look.emplace(looks_[segment], groups.size());
      const int32_t tokens = segments_[segment].tokens();
      if (is_new) groups.push_back({segment, 0, tokens, tokens});
      Group& group = groups[it->second];
      ++group.count;
      group.min_tokens = std::min(group.min_tokens, tokens);
      group.max_tokens = std::max(group.max_tokens, tokens);
    }
    return groups;
  }

  void draw_siblings(const std::vector<int32_t>& siblings, const std::string& indent,
                     bool is_root) {
    const std::vector<Group> groups = group_siblings(siblings);
    for (size_t i = 0; i < groups.size(); ++i) {
      const bool last = i + 1 == groups.size();
      const std::string branch = is_root ? "" : last ? "└─ " : "├─ ";
      draw_group(groups[i], indent + branch);
      const auto& below = children_[groups[i].first];
      if (below.empty()) continue;
      const std::string deeper = is_root ? indent : indent + (last ? "   " : "│  ");
      if (segments_[groups[i].first].depth + 1 >= kMaxDepth) {
        ++hidden_;
      } else {
        draw_siblings(below, deeper, false);
      }
    }
  }

  void draw_group(const Group& group, const std::string& lead) {
    if (++lines_ > kMaxLines) {
      ++hidden_;
      return;
    }
    const Segment& segment = segments_[group.first];
    const int cells =
        std::max(1, static_cast<int>(std::lround(kBarCells * double(group.max_tokens) / longest_)));
    const bool own = is_own(group.first);
    const auto reason = reasons_.find(group.first);
    const bool shared = reason != reasons_.end() && reason->second == Reason::kShared;

    std::string bar;
    for (int i = 0; i < cells; ++i) bar += shared ? "█" : own ? "░" : "▒";
    std::string tokens = grouped(group.min_tokens);
    if (group.max_tokens != group.min_tokens) tokens += "–" + grouped(group.max_tokens);
    const std::string count = group.count > 1 ? fmt::format("{} × ", grouped(group.count)) : "";
    const std::string label =
        own ? fmt::format("{}{} own tokens", count, tokens)
            : fmt::format("{}{} tokens of {} sequences", count, tokens, segment.sequences());
    const int width = columns(lead) + cells + 1 + columns(label);
    const std::string gap(std::max(2, kTextColumn - width), ' ');
    std::string remark;
    if (shared) remark = style_.good("shared: read once");
    if (!own && !shared) remark = style_.note(reason_of(group.first));
    text_ += lead + (shared ? style_.good(bar) : style_.dim(bar)) + " " +
             (shared ? style_.bold(label) : label);
    if (!remark.empty()) text_ += gap + remark;
    text_ += "\n";
  }

  std::string_view reason_of(int32_t segment) const {
    const auto it = reasons_.find(segment);
    return it == reasons_.end() ? "" : reason_text(it->second);
  }

  /// Terminal columns of UTF-8 text: bytes that start a character.
  static int columns(const std::string& text) {
    return static_cast<int>(std::count_if(text.begin(), text.end(), [](char c) {
      return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
    }));
  }

  std::span<const Segment> segments_;
  const Style& style_;
  std::vector<std::vector<int32_t>> children_;
  std::vector<int32_t> roots_;
  std::map<int32_t, Reason> reasons_;
  std::vector<int> looks_;
  std::map<std::vector<int>, int> look_numbers_;
  int32_t longest_ = 1;
  int lines_ = 0;
  int hidden_ = 0;
  std::string text_;
};

}  // namespace

std::string forest_picture(const Forest& forest, const Plan& plan, const Style& style) {
  return Picture(forest, plan, style).draw();
}

}  // namespace pando::term
