// rope: rows of queries or keys in their order in memory, each pair read once and written once.
#include "cpu/elementwise/rope.h"

#include <type_traits>

#include "cpu/elementwise/elementwise.h"

namespace r1::R1_ISA {
namespace {
// The two elements of each pair.
struct Pairs {
  Chunk first, second;
};

// (a·cos - b·sin, b·cos + a·sin), or back; rounded one by one to elements of the tables, which are
// of A, as PyTorch does it in three steps.
template <class A>
inline Pairs turned(Pairs x, Pairs cos, Pairs sin, bool inverse) {
  const Chunk a = nearest<A>(x.first * cos.first), b = nearest<A>(x.second * cos.second);
  if (inverse) return {a + nearest<A>(x.second * sin.second), b - nearest<A>(x.first * sin.first)};
  return {a - nearest<A>(x.second * sin.first), b + nearest<A>(x.first * sin.second)};
}

// Rounded to elements of T. The NaN of a table in float may have bits that T has not.
template <class T, class A>
inline Chunk result(Chunk v) {
  if constexpr (std::is_same_v<T, A>) return nearest<T>(v);
  return {T::rounded(v.a), T::rounded(v.b)};
}

// Even elements in order, and odd ones.
inline Chunk split(const uint16_t* p, int64_t count) { return load_chunk<BF16>(p, count); }
inline Chunk split(const float* p, int64_t count) {
  float all[kChunk];
  store_chunk(all, load_chunk<F32>(p, count));
  Chunk v;
  for (int n = 0; n < kWidth; ++n) v.a[n] = all[2 * n], v.b[n] = all[2 * n + 1];
  return v;
}
inline void join(uint16_t* p, Chunk v, int64_t count) { store_exact<BF16>(p, v, count); }
inline void join(float* p, Chunk v, int64_t count) {
  float all[kChunk];
  for (int n = 0; n < kWidth; ++n) all[2 * n] = v.a[n], all[2 * n + 1] = v.b[n];
  store_exact<F32>(p, load_chunk(all), count);
}

// Elements of a table in the order in which a chunk has those of T.
template <class T, class A>
inline Chunk angles(const typename A::Element* p, int64_t count) {
  if constexpr (std::is_same_v<T, A>) return load_chunk<A>(p, count);
  return split(p, count);
}

template <class T, class A>
void rotate(const Rope& a, const typename T::Element* x, const typename A::Element* cos,
            const typename A::Element* sin, typename T::Element* out) {
  const int64_t half = a.rotary / 2;
  each_chunk(half, [&](int64_t i, int64_t left) __attribute__((always_inline)) {
    const auto both = [&](const typename A::Element* p) __attribute__((always_inline)) -> Pairs {
      return {angles<T, A>(p + i, left), angles<T, A>(p + i + half, left)};
    };
    const Pairs given{load_chunk<T>(x + i, left), load_chunk<T>(x + i + half, left)};
    const Pairs v = turned<A>(given, both(cos), both(sin), a.inverse);
    store_exact<T>(out + i, result<T, A>(v.first), left);
    store_exact<T>(out + i + half, result<T, A>(v.second), left);
  });
}

template <class T, class A>
void rotate_neighbours(const Rope& a, const typename T::Element* x, const typename A::Element* cos,
                       const typename A::Element* sin, typename T::Element* out) {
  each_chunk(a.rotary, [&](int64_t i, int64_t left) __attribute__((always_inline)) {
    const Chunk v = split(x + i, left), c = split(cos + i, left), s = split(sin + i, left);
    const Chunk own = nearest<A>(v * c);
    const Chunk other = nearest<A>(a.inverse ? Chunk{v.b * s.b, v.a * s.a}
                                             : Chunk{v.b * s.a, v.a * s.b});
    const Chunk sum = a.inverse ? Chunk{own.a + other.a, own.b - other.b}
                                : Chunk{own.a - other.a, own.b + other.b};
    join(out + i, result<T, A>(sum), left);
  });
}

template <class T, class A>
void rows(const Rope& a, int64_t begin, int64_t end) {
  using E = typename T::Element;
  using Angle = typename A::Element;
  const RopeRows& r = a.rows;
  const int64_t each = a.heads * a.positions, inner = a.heads_inside ? a.heads : a.positions;
  int64_t batch = begin / each, outside = begin % each / inner, inside = begin % inner;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t head = a.heads_inside ? inside : outside;
    const int64_t position = a.heads_inside ? outside : inside;
    const int64_t table = batch * a.table_batch + position * a.rotary;
    const E* x = static_cast<const E*>(r.from) + batch * r.batch + head * r.head + position * r.position;
    const Angle* cos = static_cast<const Angle*>(a.cos) + table;
    const Angle* sin = static_cast<const Angle*>(a.sin) + table;
    E* out = static_cast<E*>(r.to) + batch * r.out_batch + head * r.out_head + position * r.out_position;
    if (a.interleaved) rotate_neighbours<T, A>(a, x, cos, sin, out);
    else rotate<T, A>(a, x, cos, sin, out);
    if (a.rotary < a.width) memcpy(out + a.rotary, x + a.rotary, (a.width - a.rotary) * sizeof(E));
    if (++inside < inner) continue;
    inside = 0;
    if (++outside * inner < each) continue;
    outside = 0;
    ++batch;
  }
}
}  // namespace

void rope_rows(const Rope& a, int64_t begin, int64_t end) {
  (!a.bf16 ? rows<F32, F32> : a.bf16_tables ? rows<BF16, BF16> : rows<BF16, F32>)(a, begin, end);
}
}  // namespace r1::R1_ISA

#ifdef R1_BASELINE
#include "cpu/common/outputs.h"
#include "cpu/common/parallel.h"
#include "cpu/common/rows.h"

namespace r1 {
namespace {
Tensor rotated(const char* name, const Tensor& x, const Tensor& cos, const Tensor& sin,
               bool interleaved, bool inverse) {
  R1_CHECK(x.dim() == 4 && (is_bf16(x) || !is_bf16(cos)), "rope: ", name,
           ": expected shape [B, heads, S, D] and the dtype of cos, or bfloat16 where that is float32");
  const int64_t batch = x.size(0), heads = x.size(1), positions = x.size(2), width = x.size(3);
  const int64_t rotary = cos.size(2);
  R1_CHECK((cos.size(0) == 1 || cos.size(0) == batch) && cos.size(1) == positions &&
               rotary <= width && rotary % 2 == 0,
           "rope: cos: expected shape [", batch, " or 1, ", positions, ", Dr], Dr even and at most ",
           width);
  Tensor out = output_like(x);
  if (x.numel() == 0) return out;
  if (width > 1 && x.stride(3) != 1) {  // as the gradient of a transposed key comes
    torch::stable::copy_(out, rotated(name, dense(x), cos, sin, interleaved, inverse));
    return out;
  }
  const Rope a{is_bf16(x), is_bf16(cos), interleaved, inverse, heads, positions, width, rotary,
               cos.data_ptr(), sin.data_ptr(), cos.size(0) == 1 ? 0 : positions * rotary,
               out.stride(1) <= out.stride(2),
               {x.data_ptr(), out.data_ptr(), x.stride(0), x.stride(1), x.stride(2),
                out.stride(0), out.stride(1), out.stride(2)}};
  const auto kernel = R1_DISPATCH(rope_rows);
  parallel_ranges(batch * heads * positions, items_a_task(width * x.element_size()),
                  [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  return out;
}

std::tuple<Tensor, Tensor> rope(Tensor q, Tensor k, Tensor cos, Tensor sin, bool interleaved,
                                bool inverse) {
  R1_CHECK(cos.dim() == 3, "rope: cos: expected shape [B, S, Dr]");
  R1_CHECK(sin.dim() == 3 && sin.size(0) == cos.size(0) && sin.size(1) == cos.size(1) &&
               sin.size(2) == cos.size(2) && sin.scalar_type() == cos.scalar_type(),
           "rope: sin: expected the shape and the dtype of cos");
  const Tensor c = dense(cos), s = dense(sin);
  return {rotated("q", q, c, s, interleaved, inverse), rotated("k", k, c, s, interleaved, inverse)};
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "rope(Tensor q, Tensor k, Tensor cos, Tensor sin, bool interleaved, bool inverse) "
      "-> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) { m.impl("rope", TORCH_BOX(&rope)); }
}  // namespace r1
#endif
