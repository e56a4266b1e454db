// Tiles of both heads' logits, as the kernels of linear_reverse_kl share them.
#pragma once

#include "cpu/head/linear_logprob_tile.h"
#include "cpu/head/linear_reverse_kl.h"

namespace r1::R1_ISA {
static inline void logits_of(const Head& h, const Rows& rows, int64_t block, int64_t v0, int64_t cols,
                             float* z) {
  const int64_t lanes = rows.lanes(block);
  h.bf16 ? logits_tile<BF16>(h, rows, block, lanes, v0, cols, z)
         : logits_tile<F32>(h, rows, block, lanes, v0, cols, z);
}

// A tile as it is kept. With e = e^(z - m), m the tile's maximum of the row, d = z - z of the teacher,
// and a the tile's mean of d under e: e and e·(d - a), then m and a. What is rounded is so the distance
// from a mean, however far apart the logits of the two are.
template <class T>
struct DivergenceTile {
  using Element = typename T::Element;
  static constexpr int64_t kBytes = kKeptMatrices * kRows * (kCols * sizeof(Element) + sizeof(float));
  Element *shares, *apart;
  float *maxima, *means;
  explicit DivergenceTile(uint8_t* p)
      : shares(reinterpret_cast<Element*>(p)), apart(shares + kRows * kCols),
        maxima(reinterpret_cast<float*>(apart + kRows * kCols)), means(maxima + kRows) {}
};

static inline void add_student(Divergence& into, int64_t n, F m, F sum, F weighted, F apart) {
  const F before = load(into.student.max + n), after = max(before, m);
  const F old = load(into.apart + n) * exp_nonpositive(before - after);
  store(into.apart + n, old + apart * exp_nonpositive(m - after));
  merge(into.student, n, m, sum, weighted);
}

// The student's logits z and the teacher's q, which are overwritten: into the sums and, if asked, into
// a kept tile. Both sums of exponentials are made in the same steps: equal logits have equal bits.
template <class T>
static void diverge(float* z, float* q, int64_t lanes, int64_t cols, Divergence* into, uint8_t* kept) {
  if (into) reduce_tile<F32>(q, lanes, cols, false, &into->teacher, nullptr);
  for (int64_t n = 0; n < lanes; n += kWidth) {
    const F m = column_maximum(z, cols, n);
    F sum{}, weighted{}, apart{};
    for (int64_t v = 0; v < cols; ++v) {
      const F logit = load(z + v * kRows + n), below = logit - m, e = exp_nonpositive(below);
      const F d = logit - load(q + v * kRows + n);
      sum = sum + e;
      weighted = weighted + e * max(splat(-200.0f), below);
      apart = apart + (e == F{} ? F{} : e * d);  // of nothing it is nothing, even at -inf
      if (!kept) continue;
      store(z + v * kRows + n, e);
      store(q + v * kRows + n, d);
    }
    if (into) add_student(*into, n, m, sum, weighted, apart);
    if (!kept) continue;
    const DivergenceTile<T> tile(kept);
    F mean = apart / sum;
    mean = max(mean, -mean) < splat(-kLow) ? mean : F{};  // what is infinite stays in the matrix
    store(tile.maxima + n, m);
    store(tile.means + n, mean);
    for (int64_t v = 0; v < cols; ++v) {
      const F e = load(z + v * kRows + n), d = load(q + v * kRows + n) - mean;
      T::store(tile.shares + v * kRows + n, e);
      T::store(tile.apart + v * kRows + n, e == F{} ? F{} : e * d);
    }
  }
}
}  // namespace r1::R1_ISA
