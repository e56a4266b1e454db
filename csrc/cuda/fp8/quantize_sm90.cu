// fp8_quantize in blocks of (1, 128): sixteen threads have 128 columns of four rows, so that each keeps
// four loads of 16 bytes on their way; a warp has eight rows, whose scales are one sector.
#include "cuda/fp8/quantize.h"

#include "cuda/common/elements.h"
#include "cuda/common/fresh.h"
#include "cuda/common/hopper.h"

namespace r1 {
namespace {
constexpr int kBlock = 128, kThreads = 256;
constexpr int kThreadsOfRows = 128;    // where nothing is transposed
constexpr int kLanes = 16, kRows = 4;  // that have a block of columns; of how many rows
constexpr int kEach = kBlock / kLanes;
constexpr int kTeams = kThreads / kLanes;
constexpr int kWarpRows = 2 * kRows;
constexpr uint32_t kInfinity = 0x7f800000;

// Eight neighbours of a row, as they lie.
template <class T>
struct Raw {
  static constexpr int kWords = kEach * sizeof(T) / 4;
  uint32_t words[kWords];

  __device__ float at(int i) const {
    if constexpr (sizeof(T) == 4) return __uint_as_float(words[i]);
    else return to_float(static_cast<uint16_t>(words[i / 2] >> i % 2 * 16));
  }
};

struct Source {
  RowsToQuantize in;
  bool aligned;  // groups of eight columns lie at multiples of 16 bytes, or are outside

  // Columns outside are 0, and so are rows outside and slots without a token.
  template <class T>
  __device__ Raw<T> load(int row, int column) const {
    Raw<T> raw = {};
    if (row >= in.rows || column >= in.columns) return raw;
    if (in.gather != nullptr) {
      const int slot = in.gather[row];
      row = slot / in.top_k;
      if (slot < 0 || row >= in.x_rows) return raw;
    }
    const T* from = static_cast<const T*>(in.x) + row * in.step + column;
    if (aligned) {
#pragma unroll
      for (int w = 0; w < Raw<T>::kWords; w += 4) {
        const uint4 four = load_once(reinterpret_cast<const uint4*>(from) + w / 4);
        raw.words[w] = four.x, raw.words[w + 1] = four.y;
        raw.words[w + 2] = four.z, raw.words[w + 3] = four.w;
      }
    } else {
      using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;
      const Bits* bits = reinterpret_cast<const Bits*>(from);
      constexpr int kPerWord = 4 / sizeof(T);
#pragma unroll
      for (int i = 0; i < kEach; ++i)
        if (column + i < in.columns)
          raw.words[i / kPerWord] |= uint32_t{bits[i]} << i % kPerWord * 16;
    }
    return raw;
  }
};

// By its bits |x|, or 0 for what is no number.
__device__ inline uint32_t magnitude(float x) {
  const uint32_t bits = __float_as_uint(x) & 0x7fffffff;
  return bits < kInfinity ? bits : 0;
}
// What is no number becomes NaN, whose code is NaN.
__device__ inline float number(float x) {
  return (__float_as_uint(x) & 0x7fffffff) < kInfinity ? x : __uint_as_float(0x7fc00000);
}

struct Scale {
  float value, inverse;

  __device__ Scale(uint32_t largest, bool power_of_two) {
    value = fmaxf(__uint_as_float(largest) / 448.0f, 0x1p-126f);
    if (power_of_two)
      value = __uint_as_float(__float_as_uint(value) + 0x7fffff & kInfinity);
    inverse = 1.0f / value;
  }
};

__device__ inline uint32_t codes_of(float a, float b, float c, float d, float inverse) {
  return pack_e4m3(number(a) * inverse, number(b) * inverse) |
         pack_e4m3(number(c) * inverse, number(d) * inverse) << 16;
}

// The largest of each of kCount numbers over the threads whose places differ in the bits from `high`
// down to `low`. A thread gets one of them: that of number `of_lane`.
template <int kCount>
__device__ inline uint32_t largest_of(uint32_t (&m)[kCount], int high, int low) {
  const int lane = threadIdx.x % 32;
  int by = high;
#pragma unroll
  for (int half = kCount / 2; half > 0; half /= 2, by /= 2) {
    const bool upper = (lane & by) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const uint32_t kept = upper ? m[half + i] : m[i], given = upper ? m[i] : m[half + i];
      m[i] = max(kept, __shfl_xor_sync(0xffffffff, given, by));
    }
  }
  for (; by >= low; by /= 2) m[0] = max(m[0], __shfl_xor_sync(0xffffffff, m[0], by));
  return m[0];
}

// By sixteen threads: four rows from `row` on in a block of columns. Calls each(row, raw).
template <class T, class Each>
__device__ inline void quantize_team(const Source& from, const QuantizedRows& out, int row,
                                     int block, const Each& each) {
  const int lane = threadIdx.x % kLanes, column = block * kBlock + lane * kEach;
  Raw<T> raw[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) raw[r] = from.load<T>(row + r, column);
  uint32_t most[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    each(r, raw[r]);
    most[r] = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) most[r] = max(most[r], magnitude(raw[r].at(i)));
  }
  const Scale mine(largest_of(most, 8, 1), from.in.power_of_two);  // of row lane/4
  if (lane % 4 == 0 && row + lane / 4 < from.in.rows)
    out.scale[block * out.scale_step + row + lane / 4] = mine.value;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int owner = threadIdx.x % 32 / kLanes * kLanes + 4 * r;
    const float inverse = __shfl_sync(0xffffffff, mine.inverse, owner);
    if (row + r >= from.in.rows || column >= from.in.columns) continue;
    const Raw<T>& x = raw[r];
    const uint32_t low = codes_of(x.at(0), x.at(1), x.at(2), x.at(3), inverse);
    const uint32_t high = codes_of(x.at(4), x.at(5), x.at(6), x.at(7), inverse);
    unsigned char* to = out.data + int64_t{row + r} * from.in.columns + column;
    if (from.in.columns % kEach == 0) {
      *reinterpret_cast<uint2*>(to) = make_uint2(low, high);
    } else {
#pragma unroll
      for (int i = 0; i < kEach; ++i)
        if (column + i < from.in.columns) to[i] = (i < 4 ? low : high) >> i % 4 * 8 & 0xff;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreadsOfRows)
    rows_alone(Source from, QuantizedRows out, int blocks) {
  wait_for_earlier_kernels();
  let_later_kernels_start();
  const int warp = blockIdx.x * (kThreadsOfRows / 32) + threadIdx.x / 32;
  const int row = warp / blocks * kWarpRows + threadIdx.x % 32 / kLanes * kRows;
  quantize_team<T>(from, out, row, warp % blocks, [](int, const Raw<T>&) {});
}

// A tile of 128 × 128 in shared memory, in units of four columns, of which each sixteen rows have
// theirs in another order: so those who read columns of different rows meet no bank twice.
template <class T>
struct TileOfBoth {
  static constexpr int kUnits = kBlock / 4;
  using Unit = std::conditional_t<sizeof(T) == 4, uint4, uint2>;
  Unit units[kBlock][kUnits];

  __device__ Unit& at(int row, int unit) { return units[row][unit ^ row / 16 * 4]; }
  __device__ void put(int row, const Raw<T>& raw) {  // by the thread of eight columns
    const int unit = threadIdx.x % kLanes * 2;
    const uint32_t* w = raw.words;
    if constexpr (sizeof(T) == 4) {
      at(row, unit) = make_uint4(w[0], w[1], w[2], w[3]);
      at(row, unit + 1) = make_uint4(w[4], w[5], w[6], w[7]);
    } else {
      *reinterpret_cast<uint4*>(&at(row, unit)) = make_uint4(w[0], w[1], w[2], w[3]);
    }
  }
  __device__ void get(int row, int unit, float (&x)[4]) {
    const Unit u = at(row, unit);
    if constexpr (sizeof(T) == 4) {
      unpack(u, x);
    } else {
      const Raw<T> raw{{u.x, u.y}};
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = raw.at(i);
    }
  }
};

// By all: a thread has sixteen rows of four columns, those with the same columns lie in one warp.
template <class T>
__device__ inline void quantize_columns(TileOfBoth<T>& tile, const QuantizedRows& out,
                                        int64_t rows, int columns, int first_row, int first_column,
                                        bool power_of_two) {
  const int lane = threadIdx.x % 32, unit = threadIdx.x / 32 * 4 + lane % 4, part = lane / 4;
  uint32_t most[4] = {};
#pragma unroll
  for (int r = 0; r < 16; ++r) {
    float x[4];
    tile.get(part * 16 + r, unit, x);
#pragma unroll
    for (int c = 0; c < 4; ++c) most[c] = max(most[c], magnitude(x[c]));
  }
  const Scale mine(largest_of(most, 16, 4), power_of_two);  // of column lane/8
  const int column = first_column + unit * 4;
  if (lane / 4 % 2 == 0 && column + lane / 8 < columns)
    out.scale[first_row / kBlock * out.scale_step + column + lane / 8] = mine.value;
  float inverse[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) inverse[c] = __shfl_sync(0xffffffff, mine.inverse, 8 * c + lane % 4);
  uint32_t codes[4][4];  // of a column, four rows in each
#pragma unroll
  for (int r = 0; r < 16; r += 4) {
    float x[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) tile.get(part * 16 + r + i, unit, x[i]);
#pragma unroll
    for (int c = 0; c < 4; ++c)
      codes[c][r / 4] = codes_of(x[0][c], x[1][c], x[2][c], x[3][c], inverse[c]);
  }
#pragma unroll
  for (int c = 0; c < 4; ++c)
    if (column + c < columns)
      *reinterpret_cast<uint4*>(out.data + (column + c) * rows + first_row + part * 16) =
          make_uint4(codes[c][0], codes[c][1], codes[c][2], codes[c][3]);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    rows_and_columns(Source from, QuantizedRows out, QuantizedRows transposed, int blocks) {
  wait_for_earlier_kernels();
  let_later_kernels_start();
  auto& tile = *reinterpret_cast<TileOfBoth<T>*>(dynamic_shared());
  const int block = blockIdx.x % blocks, first_row = blockIdx.x / blocks * kBlock;
#pragma unroll
  for (int first = 0; first < kBlock; first += kTeams * kRows) {
    const int row = first + threadIdx.x / kLanes * kRows;
    quantize_team<T>(from, out, first_row + row, block,
                     [&](int r, const Raw<T>& raw) { tile.put(row + r, raw); });
  }
  __syncthreads();
  const int64_t rows = (from.in.rows + kBlock - 1) / kBlock * kBlock;
  quantize_columns(tile, transposed, rows, from.in.columns, first_row, block * kBlock,
                   from.in.power_of_two);
}

template <class T>
void launch(const OnDevice& device, const Source& from, const QuantizedRows& out,
            const QuantizedRows& transposed) {
  const auto count = [](int64_t size, int of) { return (size + of - 1) / of; };
  const int blocks = count(from.in.columns, kBlock);
  if (transposed.data == nullptr) {
    const int64_t warps = count(from.in.rows, kWarpRows) * blocks;
    device.launch_early("fp8_quantize", rows_alone<T>, dim3(count(warps, kThreadsOfRows / 32)),
                        kThreadsOfRows, 1, 0, from, out, blocks);
  } else {
    device.launch_early("fp8_quantize", rows_and_columns<T>,
                        dim3(count(from.in.rows, kBlock) * blocks), kThreads, 1,
                        static_cast<int>(sizeof(TileOfBoth<T>)), from, out, transposed, blocks);
  }
}
}  // namespace

RowsToQuantize rows_of(const Tensor& x, bool power_of_two) {
  const int64_t rows = x.size(0), columns = x.size(1);
  return {x.data_ptr(), x.scalar_type(), x.stride(0), static_cast<int>(rows),
          static_cast<int>(columns), nullptr, static_cast<int>(rows), 1, power_of_two};
}

Tensor new_scales(const Tensor& like, int64_t rows, int64_t blocks) {
  const int64_t padded = (rows + 3) / 4 * 4;
  Tensor memory = fresh(like, {blocks, padded}, ScalarType::Float);
  if (padded != rows) memory = torch::stable::narrow(memory, 1, 0, rows);
  return torch::stable::transpose(memory, 0, 1);
}

void quantize_rows(const OnDevice& device, const RowsToQuantize& in, const QuantizedRows& out,
                   const QuantizedRows& transposed) {
  if (in.rows == 0 || in.columns == 0) return;
  const int size = in.type == ScalarType::Float ? 4 : 2;
  const bool aligned = reinterpret_cast<uintptr_t>(in.x) % 16 == 0 && in.step * size % 16 == 0 &&
                       in.columns % kEach == 0;
  const Source from{in, aligned};
  if (in.type == ScalarType::Float) launch<float>(device, from, out, transposed);
  else launch<uint16_t>(device, from, out, transposed);
}

namespace {
constexpr const char* kOp = "fp8_quantize";

std::tuple<Tensor, Tensor, Tensor, Tensor> fp8_quantize(Tensor x, std::optional<Tensor> gather,
                                                        int64_t top_k, int64_t rows,
                                                        int64_t columns, bool power_of_two,
                                                        bool both) {
  const OnDevice device(x);
  R1_CHECK(device.is_sm90(), kOp, ": device: expected a GPU of compute capability 9.0");
  R1_CHECK(x.dim() == 2 && rows == 1 && columns == kBlock, kOp,
           ": x: expected two dimensions in blocks of (1, 128)");
  const Tensor source = x.stride(1) == 1 || x.size(1) == 1 ? x : dense(x);
  RowsToQuantize in = rows_of(source, power_of_two);
  const auto slots = gather ? std::optional(dense(*gather)) : std::nullopt;
  if (slots) in.gather = data<const int>(*slots), in.rows = static_cast<int>(slots->numel());
  in.top_k = static_cast<int>(top_k);
  const ScalarType codes = ScalarType::Float8_e4m3fn;
  const int64_t height = in.rows, blocks = (x.size(1) + kBlock - 1) / kBlock;
  const int64_t tall = both ? (height + kBlock - 1) / kBlock : 0, wide = both ? x.size(1) : 0;
  const Tensor data = fresh(x, {height, x.size(1)}, codes);
  const Tensor scale = new_scales(x, height, blocks);
  const Tensor data_t = fresh(x, {wide, tall * kBlock}, codes);
  const Tensor scale_t = both ? new_scales(x, wide, tall) : fresh(x, {0, 0}, ScalarType::Float);
  quantize_rows(device, in, quantized(data, scale),
                both ? quantized(data_t, scale_t) : QuantizedRows{});
  return {data, scale, data_t, scale_t};
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cuda, m) {
  m.def(
      "fp8_quantize(Tensor x, Tensor? gather, SymInt top_k, int rows, int columns, "
      "bool power_of_two, bool both) "
      "-> (Tensor data, Tensor scale, Tensor data_t, Tensor scale_t)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cuda, CUDA, m) { m.impl("fp8_quantize", TORCH_BOX(&fp8_quantize)); }
}  // namespace r1
