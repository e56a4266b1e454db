// rms_norm and its backward pass: a row comes from memory once, and again from the cache.
#include "cpu/elementwise/rms_norm.h"

#include <math.h>

#include "cpu/elementwise/elementwise.h"

namespace r1::R1_ISA {
namespace {
constexpr int kSums = 2;  // chunks of them, so that no addition waits for the one before it

struct Sums {
  Chunk of[kSums] = {};

  float total() const {
    const Chunk all = of[0] + of[1];
    return sum(all.a + all.b);
  }
};

// Calls body(i, left, sum) for every chunk of a row, with the sums in turn.
template <class Body>
inline void each_chunk_summed(int64_t width, Sums& sums, const Body& body) {
  int64_t i = 0;
  for (; i + kSums * kChunk <= width; i += kSums * kChunk) {
    body(i, kChunk, sums.of[0]);
    body(i + kChunk, kChunk, sums.of[1]);
  }
  for (; i < width; i += kChunk) body(i, width - i, sums.of[0]);
}

template <class E>
inline const E* row_of(const void* rows, int64_t at) {
  return rows ? static_cast<const E*>(rows) + at : nullptr;
}

template <class T>
void forward(const RmsNorm& a, int64_t row) {
  using E = typename T::Element;
  const int64_t at = row * a.width;
  const E *x = row_of<E>(a.x, at), *added = row_of<E>(a.added, at);
  E *h = static_cast<E*>(a.h) + at, *y = static_cast<E*>(a.y) + at;
  Sums squares;
  each_chunk_summed(a.width, squares, [&](int64_t i, int64_t left, Chunk& sum) __attribute__((always_inline)) {
    Chunk v = load_chunk<T>(x + i, left);
    if (added) {
      v = nearest<T>(v + load_chunk<T>(added + i, left));
      store_exact<T>(h + i, v, left);
    }
    sum = sum + v * v;
  });
  const float rstd = 1.0f / ::sqrtf(squares.total() / static_cast<float>(a.width) + a.eps);
  a.rstd[row] = rstd;
  const E* from = added ? h : x;
  const F r = splat(rstd);
  each_chunk(a.width, [&](int64_t i, int64_t left) __attribute__((always_inline)) {
    const Chunk v = load_chunk<T>(from + i, left) * r;
    store_chunk<T>(y + i, (a.round_before_weight ? nearest<T>(v) : v) * load_chunk(a.scale + i), left);
  });
}

// dx = dh + (g - n·mean(g·n))·rstd with n = h·rstd and g = dy·scale.
template <class T>
void backward(const RmsNormBackward& a, int64_t row, float* dscale) {
  using E = typename T::Element;
  const int64_t at = row * a.width;
  const E *dy = row_of<E>(a.dy, at), *dh = row_of<E>(a.dh, at), *h = row_of<E>(a.h, at);
  E* dx = static_cast<E*>(a.dx) + at;
  const float rstd = a.rstd[row];
  const F r = splat(rstd == rstd ? rstd : __builtin_nanf(""));  // one that rounding keeps
  const auto as_before = [&](Chunk v) { return a.round_before_weight ? nearest<T>(v) : v; };
  Sums products;
  each_chunk_summed(a.width, products, [&](int64_t i, int64_t left, Chunk& sum) __attribute__((always_inline)) {
    const Chunk d = load_chunk<T>(dy + i, left), v = load_chunk<T>(h + i, left) * r;
    sum = sum + as_before(d * load_chunk(a.scale + i)) * v;
    if (dscale) store_chunk(dscale + i, load_chunk(dscale + i) + d * as_before(v));
  });
  const F mean = splat(products.total() / static_cast<float>(a.width));
  each_chunk(a.width, [&](int64_t i, int64_t left) __attribute__((always_inline)) {
    const Chunk d = load_chunk<T>(dy + i, left), v = load_chunk<T>(h + i, left) * r;
    Chunk slope = (as_before(d * load_chunk(a.scale + i)) - v * mean) * r;
    if (dh) slope = nearest<T>(slope) + load_chunk<T>(dh + i, left);
    store_chunk<T>(dx + i, slope, left);
  });
}

template <class T>
void scale_of(const void* weight, float offset, int64_t width, float* scale) {
  each_chunk(width, [&](int64_t i, int64_t left) {
    const Chunk w = load_chunk<T>(static_cast<const typename T::Element*>(weight) + i, left);
    store_chunk(scale + i, {w.a + splat(offset), w.b + splat(offset)});
  });
}

template <class T>
void total_of(const float* partials, int64_t count, int64_t stride, int64_t width, void* total) {
  each_chunk(width, [&](int64_t i, int64_t left) {
    Chunk sum{};
    for (int64_t n = 0; n < count; ++n) sum = sum + load_chunk(partials + n * stride + i);
    store_chunk<T>(static_cast<typename T::Element*>(total) + i, sum, left);
  });
}
}  // namespace

void rms_norm_scale(bool bf16, const void* weight, float offset, int64_t width, float* scale) {
  (bf16 ? scale_of<BF16> : scale_of<F32>)(weight, offset, width, scale);
}

void rms_norm_rows(const RmsNorm& a, int64_t begin, int64_t end) {
  const auto kernel = a.bf16 ? forward<BF16> : forward<F32>;
  for (int64_t row = begin; row < end; ++row) kernel(a, row);
}

void rms_norm_backward_rows(const RmsNormBackward& a, int64_t begin, int64_t end, float* dscale) {
  const auto kernel = a.bf16 ? backward<BF16> : backward<F32>;
  for (int64_t row = begin; row < end; ++row) kernel(a, row, dscale);
}

void rms_norm_dweight(bool bf16, const float* partials, int64_t count, int64_t stride, int64_t width,
                      void* dweight) {
  (bf16 ? total_of<BF16> : total_of<F32>)(partials, count, stride, width, dweight);
}
}  // namespace r1::R1_ISA

#ifdef R1_BASELINE
#include "cpu/common/outputs.h"
#include "cpu/common/parallel.h"
#include "cpu/common/rows.h"

namespace r1 {
namespace {
constexpr int64_t kPartials = 128;  // sums for the weight's gradient, at most
constexpr int64_t kPadding = 32;    // elements of the longest chunk

std::vector<int64_t> sizes_of(const Tensor& t, int64_t dims) {
  return {t.sizes().begin(), t.sizes().begin() + dims};
}

// Rows of the last dimension, and offset + weight in fp32.
struct Normalised {
  int64_t width, padded, rows, row_bytes;
  Buffer<float> scale;

  Normalised(const char* op, const Tensor& x, const Tensor& weight, double offset)
      : width(x.dim() > 0 ? x.size(x.dim() - 1) : 0), padded((width / kPadding + 1) * kPadding),
        rows(width ? x.numel() / width : 0), row_bytes(width * x.element_size()), scale(padded) {
    R1_CHECK(weight.dim() == 1 && weight.size(0) == width, op, ": weight: expected shape [", width,
             "]");
    const Tensor from = to_dtype(weight, x.scalar_type());
    R1_DISPATCH(rms_norm_scale)(is_bf16(x), from.data_ptr(), offset, width, scale.p);
  }
};

// Of the shape and the dtype of `like`.
Tensor rows_like(const char* op, const char* name, const Tensor& t, const Tensor& like) {
  R1_CHECK(sizes_of(t, t.dim()) == sizes_of(like, like.dim()), op, ": ", name,
           ": expected as many rows and columns as the normalised rows");
  return to_dtype(t, like.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> rms_norm(Tensor x, Tensor weight, OptionalTensor residual,
                                            double eps, double offset, bool round_before_weight) {
  Normalised n("rms_norm", x, weight, offset);
  R1_CHECK(x.dim() > 0, "rms_norm: x: expected shape […, H]");
  const Tensor from = dense(x);
  OptionalTensor added;
  if (residual) added = rows_like("rms_norm", "residual", *residual, x);
  Tensor y = new_output(x, x.sizes()), h = residual ? new_output(x, x.sizes()) : new_output(x, {0});
  Tensor rstd = torch::stable::new_empty(x, sizes_of(x, x.dim() - 1), ScalarType::Float);
  const RmsNorm a{is_bf16(x), round_before_weight, n.width, static_cast<float>(eps), n.scale.p,
                  from.data_ptr(), data_or_null<void>(added), y.data_ptr(), h.data_ptr(),
                  data<float>(rstd)};
  const auto kernel = R1_DISPATCH(rms_norm_rows);
  parallel_ranges(n.rows, items_a_task(n.row_bytes),
                  [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  return {y, h, rstd};
}

std::tuple<Tensor, Tensor> rms_norm_backward(Tensor dy, OptionalTensor dh, Tensor h, Tensor weight,
                                             Tensor rstd, double offset, bool round_before_weight,
                                             bool need_weight) {
  constexpr const char* op = "rms_norm_backward";
  R1_CHECK(h.dim() > 0, op, ": h: expected shape […, H]");
  Normalised n(op, h, weight, offset);
  const Tensor from = dense(h), upstream = rows_like(op, "dy", dy, h);
  OptionalTensor upstream_h;
  if (dh) upstream_h = rows_like(op, "dh", *dh, h);
  const Tensor roots = to_dtype(rstd, ScalarType::Float);
  R1_CHECK(n.width == 0 || roots.numel() == n.rows, op, ": rstd: expected ", n.rows, " elements");
  Tensor dx = new_output(h, h.sizes());
  Tensor dweight = new_empty(weight, {need_weight ? n.width : 0}, h.scalar_type());
  const RmsNormBackward a{is_bf16(h), round_before_weight, n.width, n.scale.p, upstream.data_ptr(),
                          data_or_null<void>(upstream_h), from.data_ptr(), data<float>(roots),
                          dx.data_ptr()};
  const auto kernel = R1_DISPATCH(rms_norm_backward_rows);
  // The ranges depend on the shape alone; each has a sum of its own, and these are added in order.
  const int64_t step = std::max((n.rows + kPartials - 1) / kPartials, items_a_task(n.row_bytes));
  const int64_t ranges = (n.rows + step - 1) / step;
  Buffer<float> partials(need_weight ? ranges * n.padded : 0);
  parallel_ranges(n.rows, step, [&](int64_t begin, int64_t end) {
    float* sums = need_weight ? partials.p + begin / step * n.padded : nullptr;
    if (sums) memset(sums, 0, n.padded * sizeof(float));
    kernel(a, begin, end, sums);
  });
  if (need_weight) {
    const auto total = R1_DISPATCH(rms_norm_dweight);
    const int64_t columns = items_a_task(ranges * sizeof(float)) / kPadding * kPadding + kPadding;
    parallel_ranges(n.width, columns, [&](int64_t begin, int64_t end) {
      total(is_bf16(h), partials.p + begin, ranges, n.padded, end - begin,
            data<char>(dweight) + begin * dweight.element_size());
    });
  }
  return {dx, dweight};
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "rms_norm(Tensor x, Tensor weight, Tensor? residual, float eps, float offset, "
      "bool round_before_weight) -> (Tensor, Tensor, Tensor)");
  m.def(
      "rms_norm_backward(Tensor dy, Tensor? dh, Tensor h, Tensor weight, Tensor rstd, "
      "float offset, bool round_before_weight, bool need_weight) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) {
  m.impl("rms_norm", TORCH_BOX(&rms_norm));
  m.impl("rms_norm_backward", TORCH_BOX(&rms_norm_backward));
}
}  // namespace r1
#endif
