// moe_route: a warp a token chooses, weighs, and counts for the sort that ends the same launch.
#include "cuda/moe/route.h"

#include <cassert>
#include <type_traits>

namespace r1 {
namespace {
// A group of experts has `lanes` lanes of a warp, a power of two, each of which holds up to
// `per_lane` neighbours. Lower lanes, and lower positions within a lane, hold lower experts.
struct Layout {
  int groups, used, size;
  bool by_two;  // a group is as good as its two best, not as its best
  int lanes, per_lane;
};

struct Route {
  Scoring in;
  Layout layout;
  const float* bias;          // null for none
  const int64_t* replay_ids;  // [tokens, top_k], or null
  const int64_t* num_valid;   // or null
  float* weights;
  int64_t* ids;
};

// Keys are unsigned integers in the order of the numbers they stand for: 32 bits for the logits
// themselves, 64 for anything computed. NaN is −∞, and 0 is below all: no expert, or one taken.
__device__ inline uint32_t key_of(float x) {
  const uint32_t bits = __float_as_uint(x != x ? -INFINITY : x + 0.0f);  // −0 + 0 is +0
  return bits ^ (bits >> 31 != 0 ? 0xffffffff : 0x80000000);
}
__device__ inline uint64_t key_of(double x) {
  const uint64_t bits = __double_as_longlong(x != x ? -INFINITY : x + 0.0);
  return bits ^ (bits >> 63 != 0 ? ~uint64_t{0} : uint64_t{1} << 63);
}
__device__ inline double number_of(uint64_t key) {
  return __longlong_as_double(key ^ (key >> 63 != 0 ? uint64_t{1} << 63 : ~uint64_t{0}));
}

// σ(z) + σ(−z) is 1, but not to the last bit: sums are compared to 48 bits, which any exponential
// gives.
__device__ inline double to_48_bits(double sum) {
  return __longlong_as_double((__double_as_longlong(sum) + 16) & -32);
}

// The first lane that has the largest key.
__device__ inline int best_lane(uint32_t key) {
  const uint32_t best = __reduce_max_sync(kAllLanes, key);
  return __ffs(__ballot_sync(kAllLanes, key == best)) - 1;
}
__device__ inline int best_lane(uint64_t key) {
  const uint32_t high = key >> 32, best = __reduce_max_sync(kAllLanes, high);
  const uint32_t low = high == best ? static_cast<uint32_t>(key) : 0;
  const uint32_t best_low = __reduce_max_sync(kAllLanes, low);
  return __ffs(__ballot_sync(kAllLanes, high == best && low == best_low)) - 1;
}

// What a lane holds of a token.
template <class Key, int N>
struct Keys {
  Key of[N];

  struct Best {
    Key key;
    int at;
  };
  __device__ Best best() const {
    Best found{of[0], 0};
#pragma unroll
    for (int i = 1; i < N; ++i)
      if (of[i] > found.key) found = {of[i], i};
    return found;
  }
  __device__ void take(int at) {
#pragma unroll
    for (int i = 0; i < N; ++i) of[i] = i == at ? 0 : of[i];
  }

  // Leaves the experts of the best groups.
  __device__ void keep_best_groups(const Layout& layout) {
    Key first = 0, second = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      second = max(second, min(first, of[i]));
      first = max(first, of[i]);
    }
    for (int by = 1; by < layout.lanes; by *= 2) {
      const Key other = __shfl_xor_sync(kAllLanes, first, by);
      second = max(max(second, __shfl_xor_sync(kAllLanes, second, by)), min(first, other));
      first = max(first, other);
    }
    if constexpr (sizeof(Key) == 8) {
      if (layout.by_two && first != 0)
        first = key_of(to_48_bits(number_of(first) + number_of(second)));
    }
    const int lane = threadIdx.x % 32;
    bool kept = false;
    for (int g = 0; g < layout.used; ++g)
      if ((lane ^ best_lane(kept ? Key{0} : first)) < layout.lanes) kept = true;
#pragma unroll
    for (int i = 0; i < N; ++i) of[i] = kept ? of[i] : 0;
  }
};

// Of the warp's `owned` experts from `first` on, where this lane has them.
struct Owned {
  int first, count;

  __device__ explicit Owned(const Layout& layout) {
    const int lane = threadIdx.x % 32, group = lane / layout.lanes;
    const int begin = lane % layout.lanes * layout.per_lane;
    first = group * layout.size + begin;
    count = group < layout.groups ? max(0, min(layout.per_lane, layout.size - begin)) : 0;
  }
};

template <class Key, int N>
__device__ inline void make_keys(Keys<Key, N>& keys, const Route& call, const Row& row,
                                 const Owned& owned, const Softmax& all) {
  // Every position computes, those without an expert something: no branch parts the computations.
  auto fill = [&](auto key) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int e = min(owned.first + i, call.in.experts - 1);
      const Key found = key(row[e], e);
      keys.of[i] = i < owned.count ? found : 0;
    }
  };
  auto fill_biased = [&](auto score) {
    fill([&](float z, int e) {
      return key_of(score(z) + double{call.bias != nullptr ? call.bias[e] : 0.0f});
    });
  };
  if constexpr (sizeof(Key) == 4) fill([](float z, int) { return key_of(z); });
  else if (call.in.topk_first) fill_biased([](float z) { return double{z}; });
  else if (call.in.score == Score::kSigmoid) fill_biased([](float z) { return sigmoid(z); });
  else if (call.in.score == Score::kSoftmax) fill_biased([&](float z) { return all(z); });
  else fill_biased([](float z) { return sqrt_softplus(z); });
}

// The expert of each lane's choice.
template <class Key, int N>
__device__ inline int choose(const Route& route, const Row& row, const Owned& owned,
                             const Softmax& all) {
  Keys<Key, N> keys;
  make_keys(keys, route, row, owned, all);
  if (route.layout.groups > 1) keys.keep_best_groups(route.layout);
  const int lane = threadIdx.x % 32;
  int id = 0;
  for (int j = 0; j < route.in.top_k; ++j) {
    const auto best = keys.best();
    const int winner = best_lane(best.key);
    const int expert = __shfl_sync(kAllLanes, owned.first + best.at, winner);
    if (lane == j) id = expert;
    if (lane == winner) keys.take(best.at);
  }
  return id;
}

template <int N>
constexpr int kThreads = N <= 8 ? 512 : 256;  // so many registers: none is spilled anywhere

template <class Key, int N>
__global__ void __launch_bounds__(kThreads<N>, 1)
    route(Route call, MoeSort sort, Segments segments) {
  const Scoring& in = call.in;
  const BlockSort<kThreads<N>> rows(sort);
  const Owned owned(call.layout);
  const int lane = threadIdx.x % 32;
  const int64_t valid = call.num_valid != nullptr ? *call.num_valid : in.tokens;
  bool negative = false;
  const Segment tokens = segments.of(int64_t{blockIdx.x} * (kThreads<N> / 32) + threadIdx.x / 32);
  for (int64_t t = tokens.begin; t < tokens.end; ++t) {
    const Row row(in, t);
    const bool mine = lane < in.top_k;
    const int64_t slot = t * in.top_k + lane;
    int64_t id = in.experts;
    if (t < valid) {
      Softmax all{};
      if (in.over_all()) all = row.softmax(in.experts);
      if (call.replay_ids == nullptr) id = choose<Key, N>(call, row, owned, all);
      else if (mine) id = min(call.replay_ids[slot], int64_t{in.experts});
      negative |= id < 0;
      if (!mine) id = in.experts;
      const Choice choice(in, row, id, all);
      double weight = choice.score;
      if (in.normalises) weight = quotient(weight, sum_over_warp(weight) + kWeightEps);
      if (mine) call.weights[slot] = static_cast<float>(weight * in.scale);
      if (choice.there && sort.align > 0) rows.add(static_cast<int>(id));
    } else if (mine) {
      call.weights[slot] = 0.0f;
    }
    if (mine) call.ids[slot] = id;
  }
  if (sort.align > 0) rows.scatter({tokens.begin * in.top_k, tokens.end * in.top_k});
  assert(!negative && "moe_route: replay_ids: expected ids >= 0");  // a call: few registers live
}

Layout layout_of(int64_t experts, int64_t groups, int64_t used, bool by_two) {
  R1_CHECK(groups >= 1 && groups <= 32, "moe_route: num_groups: expected 1 to 32 on CUDA, got ",
           groups);
  R1_CHECK(experts % groups == 0, "moe_route: num_groups: expected a divisor of E = ", experts,
           ", got ", groups);
  R1_CHECK(used >= 1 && used <= groups, "moe_route: top_k_groups: expected 1 to ", groups,
           ", got ", used);
  const int size = static_cast<int>(experts / groups);
  int lanes = 32;
  while (lanes * groups > 32) lanes /= 2;
  const int per_lane = (size + lanes - 1) / lanes;
  R1_CHECK(per_lane <= 32, "moe_route: num_groups: expected at most ", 32 * lanes,
           " experts a group on CUDA where there are ", groups, ", got ", size,
           "; r1kernels.using(\"triton\") takes them");
  return {static_cast<int>(groups), static_cast<int>(used), size, by_two, lanes, per_lane};
}

// Calls body(key, n): a key of the type that choices need, and the constant of experts a lane.
template <class Body>
void with_kernel(bool exact_in_float, int per_lane, const Body& body) {
  auto with_key = [&](auto n) {
    if (exact_in_float) body(uint32_t{}, n);
    else body(uint64_t{}, n);
  };
  if (per_lane <= 4) with_key(std::integral_constant<int, 4>{});
  else if (per_lane <= 8) with_key(std::integral_constant<int, 8>{});
  else if (per_lane <= 16) with_key(std::integral_constant<int, 16>{});
  else with_key(std::integral_constant<int, 32>{});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> moe_route(
    Tensor logits, int64_t top_k, Text score, Text order, std::optional<Tensor> bias,
    int64_t num_groups, int64_t top_k_groups, bool normalize, double scale,
    std::optional<Tensor> replay_ids, std::optional<Tensor> num_valid, int64_t align) {
  const OnDevice device(logits);
  const Tensor z = dense(logits);
  const Scoring in = scoring_of("moe_route", z, top_k, score, order, normalize, scale);
  const bool softmax = in.score == Score::kSoftmax;
  const Layout layout =
      layout_of(in.experts, num_groups, top_k_groups, !softmax && !in.topk_first);
  R1_CHECK(top_k <= top_k_groups * layout.size, "moe_route: top_k: expected at most ",
           top_k_groups * layout.size, ", got ", top_k);
  auto converted = [](const std::optional<Tensor>& t, ScalarType dtype) {
    return t ? std::optional<Tensor>(to_dtype(*t, dtype)) : std::nullopt;
  };
  const auto added = converted(bias, ScalarType::Float);
  const auto replayed = converted(replay_ids, ScalarType::Long);
  const auto valid = converted(num_valid, ScalarType::Long);
  R1_CHECK(!added || added->numel() == in.experts, "moe_route: bias: expected ", in.experts,
           " elements, got ", added->numel());
  R1_CHECK(!replayed || replayed->numel() == in.tokens * top_k, "moe_route: replay_ids: expected ",
           in.tokens * top_k, " elements, got ", replayed->numel());
  R1_CHECK(!valid || valid->numel() == 1, "moe_route: num_valid: expected one number, got ",
           valid->numel());
  const bool sorted = align != 0;
  if (sorted) check_sort("moe_route", in.experts, align);
  Tensor weights = fresh(z, {in.tokens, top_k}, ScalarType::Float);
  Tensor ids = fresh(z, {in.tokens, top_k}, ScalarType::Long);
  // A score that only rises with the logit need not be computed to choose by it.
  const bool by_logit = !bias && (num_groups == 1 || softmax || in.topk_first);
  std::optional<SortTensors> out;
  with_kernel(by_logit, layout.per_lane, [&](auto key, auto n) {
    constexpr int kBlock = kThreads<n>, kWarps = kBlock / 32;
    const Route call{in, layout, data_or_null<const float>(added),
                     data_or_null<const int64_t>(replayed), data_or_null<const int64_t>(valid),
                     data<float>(weights), data<int64_t>(ids)};
    const int64_t wanted = (in.tokens + kWarps - 1) / kWarps;
    const int shared = BlockSort<kBlock>::shared_bytes(in.experts);
    if (sorted) {
      const int blocks = blocks_for(device, in.tokens, kWarps);
      out = SortTensors::of("moe_route", ids, in.experts, align, blocks);
      device.launch_together("moe_route", route<decltype(key), n>, blocks, kBlock, shared, call,
                             out->of(ids, align), Segments(in.tokens, blocks * kWarps));
      return;
    }
    out = SortTensors::none(ids);
    if (wanted > 0) {
      device.launch_clusters("moe_route", route<decltype(key), n>, dim3(wanted), kBlock, 1, shared,
                             call, out->of(ids, align), Segments(in.tokens, wanted * kWarps));
    }
  });
  return {weights, ids, out->counts, out->offsets, out->gather, out->inverse};
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cuda, m) {
  m.def(
      "moe_route(Tensor logits, SymInt top_k, str score, str order, Tensor? bias, "
      "SymInt num_groups, SymInt top_k_groups, bool normalize, float scale, Tensor? replay_ids, "
      "Tensor? num_valid, SymInt align) -> (Tensor weights, Tensor ids, Tensor counts, "
      "Tensor offsets, Tensor gather, Tensor inverse)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cuda, CUDA, m) { m.impl("moe_route", TORCH_BOX(&moe_route)); }
}  // namespace r1
