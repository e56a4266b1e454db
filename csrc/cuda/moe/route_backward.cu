// The gradient of moe_route: a warp a token writes its row, first what every expert gets, then what
// the chosen ones do. Nothing is added in an order that could change.
#include "cuda/moe/route.h"

namespace r1 {
namespace {
constexpr int kThreads = 256, kWarps = kThreads / 32;

struct Backward {
  Scoring in;
  const float* grad;   // [tokens, top_k]
  const int64_t* ids;  // [tokens, top_k]
  void* dlogits;
};

struct OutputRow {
  void* logits;
  bool bf16;

  __device__ void set(int e, double x) const {
    if (bf16) from_float(static_cast<uint16_t*>(logits)[e], static_cast<float>(x));
    else static_cast<float*>(logits)[e] = static_cast<float>(x);
  }
};

// d loss/d score of a choice.
__device__ inline double through_normaliser(const Scoring& in, const Choice& choice, double grad) {
  double ds = choice.there ? grad * in.scale : 0.0;
  if (in.normalises) {
    const double total = sum_over_warp(choice.score) + kWeightEps;
    ds = quotient(ds - quotient(sum_over_warp(ds * choice.score), total), total);
  }
  return choice.there ? ds : 0.0;
}

// d loss/d logit of a choice whose score has no part of other experts.
__device__ inline double through_score(const Scoring& in, const Choice& choice, double ds) {
  const double s = choice.score;
  if (in.score == Score::kSigmoid) return ds * s * (1.0 - s);
  if (in.score == Score::kSoftmax) return s * (ds - sum_over_warp(ds * s));
  return s > 0.0 ? quotient(ds * sigmoid(choice.z), 2.0 * s) : 0.0;
}

__global__ void __launch_bounds__(kThreads) backward(Backward call) {
  const Scoring& in = call.in;
  const int64_t t = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (t >= in.tokens) return;
  const int lane = threadIdx.x % 32;
  const Row row(in, t);
  const OutputRow out{static_cast<char*>(call.dlogits) + t * in.experts * (in.bf16 ? 2 : 4),
                      in.bf16};
  Softmax all{};
  if (in.over_all()) all = row.softmax(in.experts);
  const int64_t slot = t * in.top_k + lane;
  const int64_t id = lane < in.top_k ? call.ids[slot] : in.experts;
  const Choice choice(in, row, id, all);
  const double ds = through_normaliser(in, choice, choice.there ? call.grad[slot] : 0.0f);
  double value = ds, shared = 0.0;
  if (in.over_all()) {
    shared = sum_over_warp(ds * choice.score);
    for (int e = lane; e < in.experts; e += 32) out.set(e, all(row[e]) * (0.0 - shared));
  } else {
    value = through_score(in, choice, ds);
    for (int e = lane; e < in.experts; e += 32) out.set(e, 0.0);
  }
  // An expert that was named more than once gets the sum, from the first lane of them.
  const int expert = choice.there ? static_cast<int>(id) : -1;
  double sum = 0.0;
  bool first = choice.there;
  for (int j = 0; j < in.top_k; ++j) {
    const double other = __shfl_sync(kAllLanes, value, j);
    const bool same = __shfl_sync(kAllLanes, expert, j) == expert;
    if (same) sum += other;
    if (same && j < lane) first = false;
  }
  __syncwarp();
  if (first) out.set(expert, in.over_all() ? choice.score * (sum - shared) : sum);
}

Tensor moe_route_backward(Tensor grad, Tensor logits, Tensor ids, Text score, Text order,
                          bool normalize, double scale) {
  const OnDevice device(logits);
  const Tensor z = dense(logits), g = to_dtype(grad, ScalarType::Float);
  const Tensor chosen = to_dtype(ids, ScalarType::Long);
  R1_CHECK(ids.dim() == 2 && ids.size(0) == z.size(0),
           "moe_route_backward: ids: expected shape [T, k]");
  const Scoring in =
      scoring_of("moe_route_backward", z, ids.size(1), score, order, normalize, scale);
  R1_CHECK(g.numel() == chosen.numel(), "moe_route_backward: grad: expected ", chosen.numel(),
           " elements, got ", g.numel());
  Tensor dlogits = fresh(z, {z.size(0), z.size(1)}, z.scalar_type());
  if (in.tokens > 0)
    device.launch("moe_route_backward", backward, dim3((in.tokens + kWarps - 1) / kWarps), kThreads,
                  Backward{in, data<float>(g), data<int64_t>(chosen), dlogits.data_ptr()});
  return dlogits;
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cuda, m) {
  m.def(
      "moe_route_backward(Tensor grad, Tensor logits, Tensor ids, str score, str order, "
      "bool normalize, float scale) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cuda, CUDA, m) {
  m.impl("moe_route_backward", TORCH_BOX(&moe_route_backward));
}
}  // namespace r1
