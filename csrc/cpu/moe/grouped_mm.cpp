// grouped_mm and the gradient of its weights: rows of each expert, in parts or whole.
#include "cpu/moe/grouped_mm.h"

#include "cpu/moe/grouped_mm_tile.h"

namespace r1::R1_ISA {
namespace {
template <class T>
const typename T::Element* element(const void* p, int64_t at) {
  return static_cast<const typename T::Element*>(p) + at;
}
template <class T>
typename T::Element* element(void* p, int64_t at) {
  return static_cast<typename T::Element*>(p) + at;
}

template <class T>
void multiply(const GroupedMm& f, const Part& part, bool transposed, int64_t c0, int64_t c1,
              uint32_t* packed) {
  const int64_t units = units_of(f.depth, T::kPerUnit);
  const auto* rows = static_cast<const uint32_t*>(f.x) + part.first() * units;
  auto* out = element<T>(f.out, part.first() * f.columns);
  if (transposed)
    return columns_as_lanes<T>(
        part.rows, rows, element<T>(f.weight, part.group.expert * f.depth * f.columns), f.depth,
        f.columns, c0, c1, packed,
        [&](int64_t r, int64_t count, int64_t c, int64_t lanes, const float* z) {
          store_tile<T>(z, count, lanes, out + r * f.columns + c, f.columns);
        });
  for (int64_t r = 0; r < part.rows; r += kPanel)
    pack_lanes(at_most(part.rows - r, kPanel), units,
               [&](int64_t i) { return rows + (r + i) * units; }, packed + r * units);
  const auto* weight = static_cast<const uint32_t*>(f.weight);
  rows_as_lanes<T>(part.rows, units, packed, weight + part.group.expert * f.columns * units, c0, c1,
                   out, f.columns);
}

template <class T>
void pack_right(const GroupedMmBackward& f, const Group& group, int64_t c0, int64_t c1) {
  const int64_t lanes = units_of(f.columns, kPanel) * kPanel;
  const int64_t units = units_of(group.rows, T::kPerUnit);
  const auto* right = element<T>(f.right, group.row * f.columns);
  for (int64_t c = c0; c < c1; c += kPanel)
    pack_pairs<T>(group.rows, at_most(c1 - c, kPanel),
                  [&](int64_t i) { return right + i * f.columns + c; },
                  f.packed + group.units * lanes + c * units);
}

template <class T>
void weight_gradient(const GroupedMmBackward& f, const Group& group, int64_t m0, int64_t m1,
                     uint32_t* packed) {
  const int64_t lanes = units_of(f.columns, kPanel) * kPanel;
  const auto* left = element<T>(f.left, group.row * f.left_columns);
  sum_of_rows<T>(group.rows, [&](int64_t i) { return left + i * f.left_columns; }, m0, m1,
                 f.packed + group.units * lanes, f.columns, packed,
                 element<T>(f.out, group.expert * f.left_columns * f.columns));
}
}  // namespace

void grouped_mm_part(const GroupedMm& f, const Part& part, bool transposed, int64_t c0, int64_t c1,
                     uint32_t* packed) {
  f.bf16 ? multiply<BF16>(f, part, transposed, c0, c1, packed)
         : multiply<F32>(f, part, transposed, c0, c1, packed);
}

void grouped_mm_pack_right(const GroupedMmBackward& f, const Group& group, int64_t c0, int64_t c1) {
  f.bf16 ? pack_right<BF16>(f, group, c0, c1) : pack_right<F32>(f, group, c0, c1);
}

void grouped_mm_weight_gradient(const GroupedMmBackward& f, const Group& group, int64_t m0,
                                int64_t m1, uint32_t* packed) {
  f.bf16 ? weight_gradient<BF16>(f, group, m0, m1, packed)
         : weight_gradient<F32>(f, group, m0, m1, packed);
}
}  // namespace r1::R1_ISA

#ifdef R1_BASELINE
#include "cpu/moe/grouped_mm_groups.h"

R1_DECLARE(void grouped_mm_part(const GroupedMm&, const Part&, bool, int64_t, int64_t, uint32_t*))
R1_DECLARE(void grouped_mm_pack_right(const GroupedMmBackward&, const Group&, int64_t, int64_t))
R1_DECLARE(void grouped_mm_weight_gradient(const GroupedMmBackward&, const Group&, int64_t, int64_t,
                                           uint32_t*))

namespace r1 {
namespace {
Tensor grouped_mm(Tensor x, Tensor weight, Tensor offsets, bool transposed) {
  R1_CHECK(x.dim() == 2 && weight.dim() == 3 && offsets.numel() == weight.size(0) + 1,
           "grouped_mm: expected x [P, K], weight of E experts, offsets [E + 1]");
  const int64_t depth = x.size(1), columns = weight.size(transposed ? 2 : 1);
  R1_CHECK(weight.size(transposed ? 1 : 2) == depth && weight.scalar_type() == x.scalar_type(),
           "grouped_mm: weight: expected the K and dtype of x");
  const bool bf16 = is_bf16(x);
  const Groups all("grouped_mm", offsets, x.size(0), bf16);
  const Tensor rows = whole_units(x), experts = transposed ? dense(weight) : whole_units(weight);
  Tensor out = new_output(x, {all.rows, columns});
  all.clear_others(out.data_ptr(), columns * x.element_size());
  const int64_t units = bf16 ? (depth + 1) / 2 : depth;
  const int64_t scratch = units * (transposed ? kPanel : kPartRows);
  Buffer<uint32_t> packed(workers() * scratch);
  const GroupedMm f{bf16, depth, columns, rows.data_ptr(), experts.data_ptr(), out.data_ptr()};
  const auto part = R1_DISPATCH(grouped_mm_part);
  each_block(all.parts, columns, transposed ? kPanel : kTile,
             [&](const Part& p, int64_t c0, int64_t c1, int worker) {
               part(f, p, transposed, c0, c1, packed.p + worker * scratch);
             });
  return out;
}

Tensor grouped_mm_backward(Tensor left, Tensor right, Tensor offsets) {
  R1_CHECK(left.dim() == 2 && right.dim() == 2 && left.size(0) == right.size(0) &&
               left.scalar_type() == right.scalar_type(),
           "grouped_mm_backward: left, right: expected [P, N] and [P, K] of one dtype");
  const int64_t left_columns = left.size(1), columns = right.size(1);
  const bool bf16 = is_bf16(left);
  const Groups all("grouped_mm_backward", offsets, left.size(0), bf16);
  const Tensor left_rows = dense(left), right_rows = dense(right);
  Tensor out = new_output(left, {all.experts, left_columns, columns});
  const int64_t lanes = (columns + kPanel - 1) / kPanel * kPanel, scratch = all.longest * kPanel;
  Buffer<uint32_t> right_panels(all.units * lanes), packed(workers() * scratch);
  const GroupedMmBackward f{bf16, left_columns, columns, left_rows.data_ptr(),
                            right_rows.data_ptr(), right_panels.p, out.data_ptr()};
  const auto pack = R1_DISPATCH(grouped_mm_pack_right);
  each_block(all.groups, columns, kPanel,
             [&](const Group& g, int64_t c0, int64_t c1, int) { pack(f, g, c0, c1); });
  const auto gradient = R1_DISPATCH(grouped_mm_weight_gradient);
  each_block(all.groups, left_columns, kPanel,
             [&](const Group& g, int64_t m0, int64_t m1, int worker) {
               gradient(f, g, m0, m1, packed.p + worker * scratch);
             });
  all.clear_weights(out);
  return out;
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def("grouped_mm(Tensor x, Tensor weight, Tensor offsets, bool transposed) -> Tensor");
  m.def("grouped_mm_backward(Tensor left, Tensor right, Tensor offsets) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) {
  m.impl("grouped_mm", TORCH_BOX(&grouped_mm));
  m.impl("grouped_mm_backward", TORCH_BOX(&grouped_mm_backward));
}
}  // namespace r1
#endif
