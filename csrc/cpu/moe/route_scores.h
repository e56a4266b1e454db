// Scores of a row's experts, for moe_route and its gradient: in float64, as the choice is.
#pragma once

#include "cpu/moe/route.h"
#include "cpu/common/simd_double.h"

namespace r1::R1_ISA {
constexpr double kInfinity = __builtin_inf();
constexpr double kEpsilon = 1e-20;  // added to the sum that weights are normalised by

static inline D sigmoid(D z) { return splat_double(1.0) / (splat_double(1.0) + exp(-z)); }
static inline D sqrtsoftplus(D z) {  // ln(1 + e^z) is z itself long before e^z overflows
  const D bounded = z > splat_double(100.0) ? splat_double(100.0) : z;
  return sqrt(z > splat_double(100.0) ? z : log1p(exp(bounded)));
}
static inline D elementwise(Score score, D z) {
  return score == Score::sigmoid ? sigmoid(z) : sqrtsoftplus(z);
}

static inline bool names_expert(const Scoring& s, int64_t id) {
  return static_cast<uint64_t>(id) < static_cast<uint64_t>(s.experts);
}

static inline double logit_at(const Scoring& s, int64_t at) {
  return s.bf16 ? bf16_to_float(static_cast<const uint16_t*>(s.logits)[at])
                : static_cast<const float*>(s.logits)[at];
}

template <class Lanes, class Element>
static inline void widen(const Element* from, int64_t count, double* z) {
  int64_t i = 0;
  for (; i + kDoubles <= count; i += kDoubles)
    store_double(z + i, to_double(load_as<Lanes>(from + i)));
  if (i == count) return;
  Lanes rest{};
  memcpy(&rest, from + i, (count - i) * sizeof(Element));
  store_double(z + i, to_double(rest));
}

// Logits of a row, then −inf up to padded(experts).
static inline void load_logits(const Scoring& s, int64_t row, double* z) {
  const int64_t at = row * s.experts;
  if (s.bf16) widen<Halves>(static_cast<const uint16_t*>(s.logits) + at, s.experts, z);
  else widen<Singles>(static_cast<const float*>(s.logits) + at, s.experts, z);
  for (int64_t i = s.experts; i < padded(s.experts); ++i) z[i] = -kInfinity;
}

struct Softmax {
  double max, sum;
  D operator()(D z) const { return exp(z - splat_double(max)) / splat_double(sum); }
};
// Of z[0, room), a multiple of kMaxDoubles; NaN if any of them is.
static inline Softmax softmax_of(const double* z, int64_t room) {
  D max = splat_double(-kInfinity), sum{};
  for (int64_t i = 0; i < room; i += kDoubles) {
    const D v = load_double(z + i);
    max = larger(v, max);
  }
  Softmax found{largest_lane(max), 0};
  for (int64_t i = 0; i < room; i += kDoubles)
    sum += exp(load_double(z + i) - splat_double(found.max));
  found.sum = sum_of_lanes(sum);
  return found;
}

// Scores of the chosen experts, whose logits are chosen[0, k); 0 where an id names none. Both arrays
// have padded(k) places. Returns their sum.
static inline double scores_of_choices(const Scoring& s, const Softmax& of_row, const int64_t* ids,
                                       double* chosen, double* scores) {
  const int64_t room = padded(s.top_k);
  for (int64_t j = 0; j < room; ++j)
    if (j >= s.top_k || !names_expert(s, ids[j])) chosen[j] = -kInfinity;
  const bool of_chosen = s.of_chosen && s.score == Score::softmax;
  const Softmax softmax = of_chosen ? softmax_of(chosen, room) : of_row;
  for (int64_t j = 0; j < room; j += kDoubles) {
    const D z = load_double(chosen + j);
    store_double(scores + j, s.score == Score::softmax ? softmax(z) : elementwise(s.score, z));
  }
  double sum = 0;
  for (int64_t j = 0; j < room; ++j) {
    if (j >= s.top_k || !names_expert(s, ids[j])) scores[j] = 0;
    sum += scores[j];
  }
  return sum;
}
}  // namespace r1::R1_ISA
