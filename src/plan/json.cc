#include <nlohmann/json.hpp>
#include <utility>

#include "pando/plan.h"

namespace pando {
namespace {

using Json = nlohmann::ordered_json;

Json cost_json(const PlanCost& c) {
  return {{"predicted_us", c.predicted_us},
          {"predicted_unshared_us", c.predicted_unshared_us},
          {"roof_us", c.roof_us},
          {"kv_bytes", c.kv_bytes},
          {"unshared_kv_bytes", c.unshared_kv_bytes},
          {"io_bytes", c.io_bytes},
          {"partial_bytes", c.partial_bytes},
          {"flops", c.flops},
          {"padded_flops", c.padded_flops},
          {"unshared_padded_flops", c.unshared_padded_flops}};
}

Json one_json(const Decision& d) {
  return {{"segment", d.segment},
          {"parent", d.parent},
          {"token_begin", d.token_begin},
          {"token_end", d.token_end},
          {"sequences", d.sequences},
          {"seen_by", d.seen_by},
          {"q_rows", d.q_rows},
          {"shared", d.reason == Reason::kShared},
          {"reason", reason_text(d.reason)},
          {"saves_us", d.saves_us},
          {"costs_us", d.costs_us}};
}

Json one_json(const WorkItem& item) {
  return {{"token_begin", item.token_begin},
          {"token_end", item.token_end},
          {"packed_begin", item.packed_begin},
          {"packed_end", item.packed_end},
          {"page_offset", item.page_offset},
          {"partial", item.partial},
          {"full", item.full != 0}};
}

Json list_json(const auto& entries) {
  Json list = Json::array();
  for (const auto& entry : entries) list.push_back(one_json(entry));
  return list;
}

}  // namespace

std::string to_json(const Plan& plan, bool with_items) {
  const PlanHeader& h = plan.header();
  Json json = {{"device", h.device.data()},
               {"workers", h.workers},
               {"sequences", h.sequences},
               {"q_rows", h.rows},
               {"q_heads", h.q_heads},
               {"kv_heads", h.kv_heads},
               {"head_dim", h.head_dim},
               {"dtype", dtype_name(h.dtype)},
               {"kv_dtype", dtype_name(h.kv_dtype)},
               {"scale", h.scale},
               {"soft_cap", h.soft_cap},
               {"tree_rows", h.tree_rows},
               {"page_tokens", h.page_tokens},
               {"batch_invariant", h.batch_invariant != 0},
               {"cut_tokens", h.cut_tokens},
               {"row_tile", h.row_tile},
               {"kv_tile", h.kv_tile},
               {"items", h.items},
               {"merges", h.merges},
               {"partial_slots", h.partial_slots},
               {"partial_rows", h.partial_rows},
               {"units", h.units},
               {"schedule_bytes", h.schedule_bytes},
               {"plan_bytes", h.total_bytes},
               {"workspace_bytes", plan.workspace_bytes()},
               {"cost", cost_json(h.cost)},
               {"decisions", list_json(plan.decisions())}};
  if (with_items) json["work_items"] = list_json(plan.items());
  // A device's name may have been cut inside a character.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace pando
