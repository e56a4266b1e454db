// fp8_swiglu and its backward pass: tiles of what is to be quantized are made in the cache.
#include "cpu/fp8/swiglu.h"

#include "cpu/fp8/tile.h"
#include "cpu/elementwise/elementwise.h"

namespace r1::R1_ISA {
namespace {
// Rows of the tile at (row, column) of a matrix of `width` columns; those after the last are zeros.
inline void start(Fp8Tile& tile, int64_t rows, int64_t width, int64_t row, int64_t column) {
  tile.rows = rows - row < kBlock ? rows - row : kBlock;
  tile.columns = width - column < kBlock ? width - column : kBlock;
  const int64_t end = (tile.columns + kWidth - 1) / kWidth * kWidth;
  for (int64_t r = 0; r < tile.rows; ++r)
    memset(tile.v[r] + tile.columns, 0, (end - tile.columns) * sizeof(float));
  for (int64_t r = tile.rows; r < (tile.rows + 3) / 4 * 4; ++r) memset(tile.v[r], 0, sizeof(tile.v[r]));
}

// to[0 to count] = value(gate, up, i) of the columns from i on.
template <class T, class Value>
void fill(const Fp8Swiglu& f, int64_t row, int64_t i, int64_t count, float* to, const Value& value) {
  const auto* gate = static_cast<const typename T::Element*>(f.h) + row * 2 * f.inner;
  for (int64_t n = 0; n < count; n += kWidth) {
    const int64_t left = count - n;
    const F v = value(load_some<T>(gate + i + n, left), load_some<T>(gate + f.inner + i + n, left), i + n, left);
    if (left >= kWidth) store(to + n, v);
    else memcpy(to + n, &v, left * sizeof(float));
  }
}

inline F sigmoid(F x) { return splat(1.0f) / (splat(1.0f) + exp(-x)); }

template <class T>
void activation(const Fp8Swiglu& f, int64_t row, int64_t column, Fp8Tile& tile) {
  for (int64_t r = 0; r < tile.rows; ++r)
    fill<T>(f, row + r, column, tile.columns, tile.v[r],
            [](F gate, F up, int64_t, int64_t) { return gate * sigmoid(gate) * up; });
}

template <class T>
void gradient(const Fp8SwigluBackward& b, int64_t row, int64_t column, Fp8Tile& tile) {
  const Fp8Swiglu& f = b.forward;
  const int64_t end = column + tile.columns, middle = f.inner < column ? column
                                                      : f.inner < end ? f.inner : end;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const auto* da = static_cast<const typename T::Element*>(b.da) + (row + r) * f.inner;
    const F w = splat(b.weights[row + r]), one = splat(1.0f);
    fill<T>(f, row + r, column, middle - column, tile.v[r],
            [&](F gate, F up, int64_t i, int64_t left) {
              const F s = sigmoid(gate);
              return load_some<T>(da + i, left) * w * up * s * (one + gate * (one - s));
            });
    fill<T>(f, row + r, middle - f.inner, end - middle, tile.v[r] + (middle - column),
            [&](F gate, F, int64_t i, int64_t left) {
              return load_some<T>(da + i, left) * w * (gate * sigmoid(gate));
            });
  }
}

// The activation times the row's weight, and its product with da.
template <class T>
void weighted(const Fp8SwigluBackward& b, int64_t row, int64_t column, Fp8Tile& tile) {
  const Fp8Swiglu& f = b.forward;
  const int64_t across = (f.inner + kBlock - 1) / kBlock;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const auto* da = static_cast<const typename T::Element*>(b.da) + (row + r) * f.inner;
    const F w = splat(b.weights[row + r]);
    F dot{};
    fill<T>(f, row + r, column, tile.columns, tile.v[r],
            [&](F gate, F up, int64_t i, int64_t left) {
              const F a = gate * sigmoid(gate) * up;
              dot += load_some<T>(da + i, left) * a;
              return a * w;
            });
    float sum = 0;
    for (int n = 0; n < kWidth; ++n) sum += dot[n];
    b.dweights[(row + r) * across + column / kBlock] = sum;
  }
}

inline void write_transposed(const Fp8Tile& tile, bool power_of_two, const Fp8Rows& out,
                             int64_t rows, int64_t row, int64_t column) {
  const int64_t down = (rows + kBlock - 1) / kBlock;
  if (out.data)
    quantize_transposed(tile, power_of_two, out.data + column * down * kBlock + row, down * kBlock,
                        out.scale + column * down + row / kBlock, down);
}

inline void write_rows(const Fp8Tile& tile, bool power_of_two, const Fp8Rows& out, int64_t width,
                       int64_t row, int64_t column) {
  const int64_t across = (width + kBlock - 1) / kBlock;
  quantize_rows(tile, power_of_two, out.data + row * width + column, width,
                out.scale + row * across + column / kBlock, across);
}
}  // namespace

void fp8_swiglu_tile(const Fp8Swiglu& f, int64_t row, int64_t column) {
  Fp8Tile tile;
  start(tile, f.rows, f.inner, row, column);
  f.bf16 ? activation<BF16>(f, row, column, tile) : activation<F32>(f, row, column, tile);
  write_rows(tile, f.power_of_two, f.a, f.inner, row, column);
}

void fp8_swiglu_gradient_tile(const Fp8SwigluBackward& b, int64_t row, int64_t column) {
  const Fp8Swiglu& f = b.forward;
  Fp8Tile tile;
  start(tile, f.rows, 2 * f.inner, row, column);
  f.bf16 ? gradient<BF16>(b, row, column, tile) : gradient<F32>(b, row, column, tile);
  write_rows(tile, f.power_of_two, b.dh, 2 * f.inner, row, column);
  write_transposed(tile, f.power_of_two, b.dh_t, f.rows, row, column);
}

void fp8_swiglu_weighted_tile(const Fp8SwigluBackward& b, int64_t row, int64_t column) {
  const Fp8Swiglu& f = b.forward;
  Fp8Tile tile;
  start(tile, f.rows, f.inner, row, column);
  f.bf16 ? weighted<BF16>(b, row, column, tile) : weighted<F32>(b, row, column, tile);
  write_transposed(tile, f.power_of_two, b.a_t, f.rows, row, column);
}
}  // namespace r1::R1_ISA

#ifdef R1_BASELINE
#include "cpu/fp8/tensors.h"

namespace r1 {
namespace {
// Calls body(row, column) for every tile of a matrix.
template <class Body>
void each_tile(int64_t rows, int64_t columns, const Body& body) {
  const int64_t across = blocks(columns);
  parallel(blocks(rows) * across, [&](int64_t task, int) {
    body(task / across * kBlock, task % across * kBlock);
  });
}

std::tuple<Tensor, Tensor> fp8_swiglu(Tensor h, bool power_of_two) {
  R1_CHECK(h.dim() == 2 && h.size(1) % 2 == 0, "fp8_swiglu: h: expected shape [P, 2I]");
  const int64_t rows = h.size(0), inner = h.size(1) / 2;
  const Tensor from = dense(h);
  Tensor codes = new_empty(h, {rows, inner}, kE4M3);
  Tensor scale = new_empty(h, {rows, blocks(inner)}, ScalarType::Float);
  const Fp8Swiglu f{from.data_ptr(), is_bf16(h), rows, inner, power_of_two,
                    {data<uint8_t>(codes), data<float>(scale)}};
  const auto kernel = R1_DISPATCH(fp8_swiglu_tile);
  each_tile(rows, inner, [&](int64_t r, int64_t c) { kernel(f, r, c); });
  return {codes, scale};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> fp8_swiglu_backward(
    Tensor h, Tensor da, Tensor weights, bool power_of_two, bool both) {
  constexpr const char* op = "fp8_swiglu_backward";
  R1_CHECK(h.dim() == 2 && h.size(1) % 2 == 0, op, ": h: expected shape [P, 2I]");
  const int64_t rows = h.size(0), inner = h.size(1) / 2;
  R1_CHECK(da.dim() == 2 && da.size(0) == rows && da.size(1) == inner, op,
           ": da: expected shape [", rows, ", ", inner, "]");
  R1_CHECK(weights.numel() == rows, op, ": weights: expected shape [", rows, "]");
  const Tensor from = dense(h), upstream = to_dtype(da, h.scalar_type());
  const Tensor w = to_dtype(weights, ScalarType::Float);
  auto make = [&](int64_t r, int64_t c, ScalarType dtype) { return new_empty(h, {r, c}, dtype); };
  const int64_t down = both ? blocks(rows) : 0, inner_t = both ? inner : 0, across = blocks(inner);
  Tensor codes = make(rows, 2 * inner, kE4M3), scale = make(rows, blocks(2 * inner), ScalarType::Float);
  Tensor codes_t = make(2 * inner_t, down * kBlock, kE4M3), scale_t = make(2 * inner_t, down, ScalarType::Float);
  Tensor a_t = make(inner_t, down * kBlock, kE4M3), a_scale_t = make(inner_t, down, ScalarType::Float);
  Tensor dweights = new_empty(weights, {rows}, ScalarType::Float);
  Buffer<float> parts(rows * across);
  auto wanted = [both](const Tensor& c, const Tensor& s) {
    return both ? Fp8Rows{data<uint8_t>(c), data<float>(s)} : Fp8Rows{};
  };
  const Fp8SwigluBackward b{{from.data_ptr(), is_bf16(h), rows, inner, power_of_two, {}},
                            upstream.data_ptr(), data<float>(w),
                            {data<uint8_t>(codes), data<float>(scale)}, wanted(codes_t, scale_t),
                            wanted(a_t, a_scale_t), parts.p};
  const auto gradient = R1_DISPATCH(fp8_swiglu_gradient_tile);
  const auto weighted = R1_DISPATCH(fp8_swiglu_weighted_tile);
  each_tile(rows, 2 * inner, [&](int64_t r, int64_t c) { gradient(b, r, c); });
  each_tile(rows, inner, [&](int64_t r, int64_t c) { weighted(b, r, c); });
  for (int64_t r = 0; r < rows; ++r) {
    float sum = 0;
    for (int64_t i = 0; i < across; ++i) sum += parts[r * across + i];
    data<float>(dweights)[r] = sum;
  }
  return {codes, scale, codes_t, scale_t, a_t, a_scale_t, dweights};
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def("fp8_swiglu(Tensor h, bool power_of_two) -> (Tensor, Tensor)");
  m.def(
      "fp8_swiglu_backward(Tensor h, Tensor da, Tensor weights, bool power_of_two, bool both) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) {
  m.impl("fp8_swiglu", TORCH_BOX(&fp8_swiglu));
  m.impl("fp8_swiglu_backward", TORCH_BOX(&fp8_swiglu_backward));
}
}  // namespace r1
#endif
