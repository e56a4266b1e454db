// group_advantage: sorted by group and reward, then one walk over the groups. Sorting is by radix
// and costs a few passes; the rest is a few operations a completion, so plain code serves every
// machine.
#include "cpu/common/isa.h"

#ifdef R1_BASELINE
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "cpu/policy/group_advantage.h"

namespace r1 {
namespace {
using Order = std::vector<int64_t>;

// Stable: `order` by key(i) < bound, with a count for each key.
template <class Key>
void sort_by(Order& order, int64_t bound, const Key& key) {
  std::vector<int64_t> start(bound + 1);
  for (int64_t i : order) ++start[key(i) + 1];
  std::partial_sum(start.begin(), start.end(), start.begin());
  Order sorted(order.size());
  for (int64_t i : order) sorted[start[key(i)]++] = i;
  order.swap(sorted);
}

// Stable: `order` by value, in three passes over the bits; -0 counts as 0.
void sort_by_value(Order& order, const float* value) {
  std::vector<uint32_t> bits(order.size());
  for (size_t i = 0; i < bits.size(); ++i) {
    const float v = value[i] + 0.0f;
    memcpy(&bits[i], &v, 4);
    bits[i] ^= bits[i] >> 31 ? 0xffffffffu : 0x80000000u;  // as an unsigned number, in float order
  }
  for (int shift = 0; shift < 33; shift += 11)
    sort_by(order, 1 << 11, [&](int64_t i) { return bits[i] >> shift & 0x7ff; });
}

// Groups numbered from 0 in the order in which they come; the count of them at the end.
std::vector<int64_t> numbered(const int64_t* id, int64_t count) {
  std::vector<int64_t> number(count + 1);
  int64_t slots = 16, groups = 0;
  while (slots < 2 * count) slots *= 2;
  std::vector<int64_t> first(slots, -1);  // open addressing: the first member of a group
  for (int64_t i = 0; i < count; ++i) {
    uint64_t slot = static_cast<uint64_t>(id[i]) * 0x9e3779b97f4a7c15u >> 20;
    while (first[slot & (slots - 1)] >= 0 && id[first[slot & (slots - 1)]] != id[i]) ++slot;
    int64_t& member = first[slot & (slots - 1)];
    if (member < 0) number[i] = groups++, member = i;
    else number[i] = number[member];
  }
  number[count] = groups;
  return number;
}
}  // namespace

Tensor group_advantage(Tensor rewards, Tensor group_ids, std::optional<Tensor> lengths,
                       Text scale, Text baseline, double eps) {
  const int64_t count = rewards.numel();
  R1_CHECK(rewards.scalar_type() == ScalarType::Float && rewards.dim() == 1,
           "group_advantage: rewards: expected float32 of shape [B]");
  R1_CHECK(group_ids.dim() == 1 && group_ids.numel() == count,
           "group_advantage: group_ids: expected shape [", count, "]");
  R1_CHECK(lengths.has_value() == (baseline == "opo"),
           "group_advantage: lengths: expected for baseline opo, and only there");
  const Tensor values = dense(rewards), ids = to_dtype(group_ids, ScalarType::Long);
  const Tensor sizes = lengths ? to_dtype(*lengths, ScalarType::Float) : values;
  R1_CHECK(sizes.numel() == count, "group_advantage: lengths: expected shape [", count, "]");
  const float *r = data<float>(values), *length = data<float>(sizes);
  const std::vector<int64_t> group = numbered(data<int64_t>(ids), count);
  Tensor out = new_empty(rewards, {count}, ScalarType::Float);
  float* advantage = data<float>(out);

  // Sums over sorted rewards do not depend on the order of the batch.
  Order order(count);
  std::iota(order.begin(), order.end(), 0);
  if (lengths) sort_by_value(order, length);
  sort_by_value(order, r);
  double batch_deviation = 0;
  if (count > 1) {
    double sum = 0, squares = 0;
    for (int64_t i : order) sum += r[i];
    for (int64_t i : order) squares += (r[i] - sum / count) * (r[i] - sum / count);
    batch_deviation = std::sqrt(squares / (count - 1));
  }
  sort_by(order, group[count], [&](int64_t i) { return group[i]; });

  for (int64_t begin = 0, end; begin < count; begin = end) {
    double sum = 0, squares = 0, tokens = 0, weighted = 0;
    for (end = begin; end < count && group[order[end]] == group[order[begin]]; ++end)
      sum += r[order[end]];
    const double size = static_cast<double>(end - begin), mean = sum / size;
    const bool constant = r[order[begin]] == r[order[end - 1]];
    for (int64_t i = begin; i < end; ++i) {
      squares += (r[order[i]] - mean) * (r[order[i]] - mean);
      tokens += length[order[i]];
      weighted += double(length[order[i]]) * r[order[i]];
    }
    const double centre = lengths ? weighted / tokens : mean;
    double factor = baseline == "rloo" ? size / (size - 1) : 1.0;
    if (scale == "group") factor /= std::sqrt(squares / (size - 1)) + eps;
    if (scale == "batch") factor /= batch_deviation + eps;
    for (int64_t i = begin; i < end; ++i)
      advantage[order[i]] =
          constant ? 0.0f : static_cast<float>((r[order[i]] - centre) * factor);
  }
  return out;
}

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "group_advantage(Tensor rewards, Tensor group_ids, Tensor? lengths, str scale, "
      "str baseline, float eps) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) {
  m.impl("group_advantage", TORCH_BOX(&group_advantage));
}
}  // namespace r1
#endif
