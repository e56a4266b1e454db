// linear_reverse_kl: tiles of both heads' logits are made, used and forgotten, or what the gradient
// needs of them is kept.
#include "cpu/head/linear_reverse_kl_tile.h"
#include "cpu/common/parallel.h"

namespace r1::R1_ISA {
template <class T>
static void forward(const ReverseKL& f) {
  constexpr int64_t kGroup = 16;  // blocks that share stripes of the weights while they are in cache
  const int64_t tiles = ceil_div(f.student.columns, kCols), per_split = ceil_div(tiles, kSplits);
  const int64_t blocks = f.rows.blocks(), groups = ceil_div(blocks, kGroup);
  const int64_t in_stripe = kStripe / kCols;
  parallel(kSplits * groups, [&](int64_t task, int) {
    alignas(64) float z[kCols * kRows], q[kCols * kRows];
    const int64_t split = task / groups, group = task % groups;
    const int64_t first = split * per_split, last = smaller(first + per_split, tiles);
    const int64_t begin = group * kGroup, end = smaller(begin + kGroup, blocks);
    for (int64_t b = begin; b < end; ++b) {
      Divergence& part = f.parts[split * blocks + b];
      clear(part.student);
      clear(part.teacher);
      memset(part.apart, 0, sizeof(part.apart));
    }
    for (int64_t stripe = first; stripe < last; stripe += in_stripe)
      for (int64_t b = begin; b < end; ++b)
        for (int64_t tile = stripe; tile < smaller(stripe + in_stripe, last); ++tile) {
          const int64_t v0 = tile * kCols, cols = smaller(f.student.columns - v0, kCols);
          logits_of(f.student, f.rows, b, v0, cols, z);
          logits_of(f.teacher, f.teacher_rows, b, v0, cols, q);
          uint8_t* kept = b < f.kept_blocks
                              ? f.kept + tile * f.kept_stride + b * DivergenceTile<T>::kBytes
                              : nullptr;
          diverge<T>(z, q, f.rows.lanes(b), cols, &f.parts[split * blocks + b], kept);
        }
  });
  parallel(blocks, [&](int64_t b, int) {  // in the order of the splits
    Divergence& total = f.parts[b];
    for (int64_t split = 1; split < kSplits; ++split) {
      const Divergence& part = f.parts[split * blocks + b];
      for (int64_t n = 0; n < kRows; n += kWidth) {
        add_student(total, n, load(part.student.max + n), load(part.student.sum + n),
                    load(part.student.weighted + n), load(part.apart + n));
        merge(total.teacher, n, load(part.teacher.max + n), load(part.teacher.sum + n),
              load(part.teacher.weighted + n));
      }
    }
  });
}

void linear_reverse_kl_forward(const ReverseKL& f) {
  f.student.bf16 ? forward<BF16>(f) : forward<F32>(f);
}
}  // namespace r1::R1_ISA

#ifdef R1_BASELINE
#include "cpu/head/linear_logprob_rows.h"

R1_DECLARE(void linear_reverse_kl_forward(const ReverseKL&))

namespace r1 {
namespace {
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> linear_reverse_kl(
    Tensor hidden, Tensor weight, OptionalTensor bias, Tensor teacher_hidden, Tensor teacher_weight,
    OptionalTensor teacher_bias, OptionalTensor temperature, double logit_scale,
    std::optional<double> softcap, double teacher_logit_scale,
    std::optional<double> teacher_softcap, int64_t kept_rows) {
  constexpr const char* op = "linear_reverse_kl";
  const Layer student(op, hidden, weight, bias, temperature, logit_scale, softcap);
  const Layer teacher(op, teacher_hidden, teacher_weight, teacher_bias, temperature,
                      teacher_logit_scale, teacher_softcap);
  R1_CHECK(teacher.rows == student.rows && teacher.head.columns == student.head.columns, op,
           ": teacher_weight: expected the T and V of hidden and weight");
  const int64_t rows = student.rows;
  R1_CHECK(kept_rows >= 0 && kept_rows <= rows + kRows, op, ": kept_rows: expected at most ", rows,
           " in whole blocks, got ", kept_rows);
  Order order(student), teacher_order(teacher);
  for (int64_t t = 0; t < rows; ++t) {
    order.add(t);
    teacher_order.add(t);
  }
  const int64_t padded = order.padded(), blocks = padded / kRows;
  Buffer<uint32_t> panels(padded * student.head.units), teacher_panels(padded * teacher.head.units);
  Buffer<Divergence> parts(kSplits * blocks);
  pack_panels(order, panels.p);
  pack_panels(teacher_order, teacher_panels.p);
  const Kept kept = Kept::make(hidden, student.head, kept_rows, blocks, kKeptMatrices);
  R1_DISPATCH(linear_reverse_kl_forward)(ReverseKL{
      student.head, teacher.head, order.rows(panels.p), teacher_order.rows(teacher_panels.p), parts.p,
      kept.tiles(), kept.blocks, kept.stride});

  auto output = [&] { return new_empty(hidden, {rows}, ScalarType::Float); };
  Tensor kl = output(), entropy = output(), lse = output(), teacher_lse = output();
  for (int64_t t = 0; t < rows; ++t) {
    const Statistics &s = parts[t / kRows].student, &q = parts[t / kRows].teacher;
    const int64_t lane = t % kRows;
    const float log_sum = std::log(s.sum[lane]);
    const float own = s.max[lane] + log_sum, other = q.max[lane] + std::log(q.sum[lane]);
    data<float>(lse)[t] = own;
    data<float>(teacher_lse)[t] = other;
    data<float>(kl)[t] = parts[t / kRows].apart[lane] / s.sum[lane] - (own - other);
    data<float>(entropy)[t] = log_sum - s.weighted[lane] / s.sum[lane];
  }
  return {kl, entropy, lse, teacher_lse, kept.tensor};
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "linear_reverse_kl(Tensor hidden, Tensor weight, Tensor? bias, Tensor teacher_hidden, "
      "Tensor teacher_weight, Tensor? teacher_bias, Tensor? temperature, float logit_scale, "
      "float? softcap, float teacher_logit_scale, float? teacher_softcap, int kept_rows) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) {
  m.impl("linear_reverse_kl", TORCH_BOX(&linear_reverse_kl));
}
}  // namespace r1
#endif
