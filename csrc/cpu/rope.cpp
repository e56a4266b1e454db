// rope: rows of queries or keys in their order in memory, each pair read once and written once.
#include "cpu/rope.h"

#include "cpu/elementwise.h"

namespace r1::R1_ISA {
namespace {
// The two elements of each pair.
struct Pairs {
  Chunk first, second;
};

// (a·cos - b·sin, b·cos + a·sin), or back; rounded one by one, as PyTorch does it in three steps.
template <class T>
inline Pairs turned(Pairs x, Pairs cos, Pairs sin, bool inverse) {
  const Chunk a = nearest<T>(x.first * cos.first), b = nearest<T>(x.second * cos.second);
  if (inverse) return {a + nearest<T>(x.second * sin.second), b - nearest<T>(x.first * sin.first)};
  return {a - nearest<T>(x.second * sin.first), b + nearest<T>(x.first * sin.second)};
}

template <class T>
void rotate(const Rope& a, const typename T::Element* x, const typename T::Element* cos,
            const typename T::Element* sin, typename T::Element* out) {
  const int64_t half = a.rotary / 2;
  each_chunk(half, [&](int64_t i, int64_t left) __attribute__((always_inline)) {
    const auto both = [&](const typename T::Element* p) __attribute__((always_inline)) -> Pairs {
      return {load_chunk<T>(p + i, left), load_chunk<T>(p + i + half, left)};
    };
    const Pairs v = turned<T>(both(x), both(cos), both(sin), a.inverse);
    store_chunk<T>(out + i, v.first, left);
    store_chunk<T>(out + i + half, v.second, left);
  });
}

// Pairs that stand side by side: even elements in order, and odd ones.
inline Chunk split(const uint16_t* p, int64_t count) { return load_chunk<BF16>(p, count); }
inline void join(uint16_t* p, Chunk v, int64_t count) { store_chunk<BF16>(p, v, count); }
inline Chunk split(const float* p, int64_t count) {
  Chunk v{};
  for (int n = 0; n < kWidth && 2 * n < count; ++n) v.a[n] = p[2 * n], v.b[n] = p[2 * n + 1];
  return v;
}
inline void join(float* p, Chunk v, int64_t count) {
  for (int n = 0; n < kWidth && 2 * n < count; ++n) p[2 * n] = v.a[n], p[2 * n + 1] = v.b[n];
}

template <class T>
void rotate_neighbours(const Rope& a, const typename T::Element* x, const typename T::Element* cos,
                       const typename T::Element* sin, typename T::Element* out) {
  each_chunk(a.rotary, [&](int64_t i, int64_t left) __attribute__((always_inline)) {
    const F c = load_some<T>(cos + i / 2, left / 2), s = load_some<T>(sin + i / 2, left / 2);
    const Chunk v = split(x + i, left), own = nearest<T>(v * c), other = nearest<T>(v * s);
    join(out + i, a.inverse ? Chunk{own.a + other.b, own.b - other.a}
                            : Chunk{own.a - other.b, own.b + other.a}, left);
  });
}

template <class T>
void rows(const Rope& a, int64_t begin, int64_t end) {
  using E = typename T::Element;
  const RopeRows& r = a.rows;
  const int64_t each = a.heads * a.positions, inner = a.heads_inside ? a.heads : a.positions;
  int64_t batch = begin / each, outside = begin % each / inner, inside = begin % inner;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t head = a.heads_inside ? inside : outside;
    const int64_t position = a.heads_inside ? outside : inside;
    const int64_t table = batch * a.table_batch + position * a.rotary;
    const E* x = static_cast<const E*>(r.from) + batch * r.batch + head * r.head + position * r.position;
    const E *cos = static_cast<const E*>(a.cos) + table, *sin = static_cast<const E*>(a.sin) + table;
    E* out = static_cast<E*>(r.to) + batch * r.out_batch + head * r.out_head + position * r.out_position;
    if (a.interleaved) rotate_neighbours<T>(a, x, cos, sin, out);
    else rotate<T>(a, x, cos, sin, out);
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
  (a.bf16 ? rows<BF16> : rows<F32>)(a, begin, end);
}
}  // namespace r1::R1_ISA

#ifdef R1_BASELINE
#include "cpu/outputs.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace r1 {
namespace {
Tensor rotated(const char* name, const Tensor& x, const Tensor& cos, const Tensor& sin,
               bool interleaved, bool inverse) {
  R1_CHECK(x.dim() == 4 && x.scalar_type() == cos.scalar_type(), "rope: ", name,
           ": expected shape [B, heads, S, D] and the dtype of cos");
  const int64_t batch = x.size(0), heads = x.size(1), positions = x.size(2), width = x.size(3);
  const int64_t rotary = cos.size(2);
  R1_CHECK((cos.size(0) == 1 || cos.size(0) == batch) && cos.size(1) == positions &&
               rotary <= width && rotary % 2 == 0,
           "rope: cos: expected shape [", batch, " or 1, ", positions, ", Dr], Dr even and at most ",
           width);
  Tensor out = in_block(torch::stable::empty_like(x));
  if (x.numel() == 0) return out;
  if (width > 1 && x.stride(3) != 1) {  // as the gradient of a transposed key comes
    torch::stable::copy_(out, rotated(name, dense(x), cos, sin, interleaved, inverse));
    return out;
  }
  const Rope a{is_bf16(x), interleaved, inverse, heads, positions, width, rotary, cos.data_ptr(),
               sin.data_ptr(), cos.size(0) == 1 ? 0 : positions * rotary,
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
