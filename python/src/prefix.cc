// pando_attn.pool_* and pando_attn.tree_*: KvPool and PrefixTree.
#include <mutex>
#include <vector>

#include "pando/kv_pool.h"
#include "pando/prefix_tree.h"
#include "registration.h"
#include "tensors.h"

namespace pando::python {
namespace {

/// KvPool and PrefixTree are not for several threads at once; Python's are, by this mutex.
class PoolObject : public ffi::Object {
 public:
  PoolObject(int32_t num_pages, int32_t page_tokens) : pool(num_pages, page_tokens) {}
  std::mutex mutex;
  KvPool pool;
  static constexpr bool _type_mutable = true;
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("pando_attn.KvPool", PoolObject, ffi::Object);
};
class PoolRef : public ffi::ObjectRef {
 public:
  explicit PoolRef(ffi::ObjectPtr<PoolObject> object) : ffi::ObjectRef(std::move(object)) {}
  TVM_FFI_DEFINE_OBJECT_REF_METHODS_NOTNULLABLE(PoolRef, ffi::ObjectRef, PoolObject);
};

class TreeObject : public ffi::Object {
 public:
  explicit TreeObject(PoolRef from) : pool(std::move(from)), tree(pool->pool) {}
  PoolRef pool;  // keeps it alive
  PrefixTree tree;
  std::mutex& mutex() const { return pool->mutex; }
  static constexpr bool _type_mutable = true;
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("pando_attn.PrefixTree", TreeObject, ffi::Object);
};
class TreeRef : public ffi::ObjectRef {
 public:
  explicit TreeRef(ffi::ObjectPtr<TreeObject> object) : ffi::ObjectRef(std::move(object)) {}
  TVM_FFI_DEFINE_OBJECT_REF_METHODS_NOTNULLABLE(TreeRef, ffi::ObjectRef, TreeObject);
};

PoolRef pool_new(int64_t num_pages, int64_t page_tokens) {
  return PoolRef(ffi::make_object<PoolObject>(narrow("num_pages", num_pages),
                                              narrow("page_tokens", page_tokens)));
}
int64_t pool_allocate(PoolRef pool) {
  const std::lock_guard lock(pool->mutex);
  return pool->pool.allocate();
}
void pool_retain(PoolRef pool, int64_t page) {
  const std::lock_guard lock(pool->mutex);
  pool->pool.retain(narrow("page", page));
}
void pool_release(PoolRef pool, int64_t page) {
  const std::lock_guard lock(pool->mutex);
  pool->pool.release(narrow("page", page));
}
int64_t pool_references(PoolRef pool, int64_t page) {
  const std::lock_guard lock(pool->mutex);
  return pool->pool.references(narrow("page", page));
}
int64_t pool_free_pages(PoolRef pool) {
  const std::lock_guard lock(pool->mutex);
  return pool->pool.free_pages();
}

TreeRef tree_new(PoolRef pool) { return TreeRef(ffi::make_object<TreeObject>(pool)); }
int64_t tree_match(TreeRef tree, ffi::TensorView tokens) {
  const std::lock_guard lock(tree->mutex());
  return tree->tree.match(host_ints("tokens", tokens));
}
/// (sequence, cached_tokens)
ffi::Array<int64_t> tree_add(TreeRef tree, ffi::TensorView tokens) {
  const std::lock_guard lock(tree->mutex());
  const InsertResult result = tree->tree.insert(host_ints("tokens", tokens));
  return {result.sequence, result.cached_tokens};
}
int64_t tree_fork(TreeRef tree, int64_t sequence) {
  const std::lock_guard lock(tree->mutex());
  return tree->tree.fork(sequence);
}
/// (page, slot), followed by (from, to, tokens) when a page must be copied first.
ffi::Array<int64_t> tree_append(TreeRef tree, int64_t sequence, int64_t token) {
  const std::lock_guard lock(tree->mutex());
  const AppendResult result = tree->tree.append(sequence, narrow("token", token));
  if (!result.copy) return {result.page, result.slot};
  return {result.page, result.slot, result.copy->from, result.copy->to, result.copy->tokens};
}
void tree_release(TreeRef tree, int64_t sequence) {
  const std::lock_guard lock(tree->mutex());
  tree->tree.release(sequence);
}
int64_t tree_evict(TreeRef tree, int64_t pages) {
  const std::lock_guard lock(tree->mutex());
  return tree->tree.evict(narrow("pages", pages));
}
int64_t tree_length(TreeRef tree, int64_t sequence) {
  const std::lock_guard lock(tree->mutex());
  return tree->tree.length(sequence);
}
/// (live_sequences, cached_pages, evicted_pages)
ffi::Array<int64_t> tree_numbers(TreeRef tree) {
  const std::lock_guard lock(tree->mutex());
  return {tree->tree.live_sequences(), tree->tree.cached_pages(), tree->tree.evicted_pages()};
}

/// Page tables of the sequences, int32s one after another: kv_len [B], page_indptr [B+1], page_ids.
ffi::Bytes tree_tables(TreeRef tree, ffi::Array<int64_t> sequences) {
  const std::lock_guard lock(tree->mutex());
  std::vector<int32_t> ints;
  for (const int64_t s : sequences) ints.push_back(tree->tree.length(s));
  int64_t end = 0;
  ints.push_back(0);
  for (const int64_t s : sequences) {
    end += static_cast<int64_t>(tree->tree.pages(s).size());
    ints.push_back(narrow("page_indptr", end));
  }
  ints.reserve(ints.size() + end);
  for (const int64_t s : sequences) {
    const auto pages = tree->tree.pages(s);
    ints.insert(ints.end(), pages.begin(), pages.end());
  }
  return {reinterpret_cast<const char*>(ints.data()), ints.size() * sizeof(int32_t)};
}

}  // namespace

void register_prefix() {
  ffi::reflection::ObjectDef<PoolObject>();
  ffi::reflection::ObjectDef<TreeObject>();
  ffi::reflection::GlobalDef()
      .def("pando_attn.pool_new", Guarded<&pool_new>::call)
      .def("pando_attn.pool_allocate", Guarded<&pool_allocate>::call)
      .def("pando_attn.pool_retain", Guarded<&pool_retain>::call)
      .def("pando_attn.pool_release", Guarded<&pool_release>::call)
      .def("pando_attn.pool_references", Guarded<&pool_references>::call)
      .def("pando_attn.pool_free_pages", Guarded<&pool_free_pages>::call)
      .def("pando_attn.tree_new", Guarded<&tree_new>::call)
      .def("pando_attn.tree_match", Guarded<&tree_match>::call)
      .def("pando_attn.tree_add", Guarded<&tree_add>::call)
      .def("pando_attn.tree_fork", Guarded<&tree_fork>::call)
      .def("pando_attn.tree_append", Guarded<&tree_append>::call)
      .def("pando_attn.tree_release", Guarded<&tree_release>::call)
      .def("pando_attn.tree_evict", Guarded<&tree_evict>::call)
      .def("pando_attn.tree_length", Guarded<&tree_length>::call)
      .def("pando_attn.tree_numbers", Guarded<&tree_numbers>::call)
      .def("pando_attn.tree_tables", Guarded<&tree_tables>::call);
}

}  // namespace pando::python
