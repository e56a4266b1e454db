// moe_experts_backward: gradients of the rows on their way back through their experts, then of the
// weights, each written once.
#include "cpu/moe/experts.h"

#include "cpu/moe/grouped_mm_tile.h"

namespace r1::R1_ISA {
namespace {
template <class T>
struct Pass {
  using Element = typename T::Element;
  const ExpertsBackward& f;
  const Experts& e = f.layer;

  // The token's row of x or of grad that belongs to row p, or null.
  const Element* of_token(const void* tokens, int64_t p) const {
    const int64_t slot = e.gather[p];
    return slot < 0 ? nullptr : static_cast<const Element*>(tokens) + slot / e.top_k * e.width;
  }

  static uint32_t* pairs(uint32_t* packed, const Group& group, int64_t columns, int64_t column) {
    const int64_t lanes = units_of(columns, kPanel) * kPanel;
    return packed + group.units * lanes + column * units_of(group.rows, T::kPerUnit);
  }

  // Through down and SwiGLU, for some of the columns of I.
  void activation(const Part& part, int64_t c0, int64_t c1, uint32_t* scratch) const {
    const int64_t units = units_of(e.width, T::kPerUnit);
    uint32_t *grads = scratch, *packed = scratch + kPartRows * units;
    for (int64_t r = 0; r < part.rows; ++r) {
      const Element* grad = of_token(f.grad, part.first() + r);
      uint32_t* out = grads + r * units;
      if (units > 0) out[units - 1] = 0;
      if (grad) memcpy(out, grad, e.width * sizeof(Element));
      else memset(out, 0, units * 4);
    }
    const auto* down = static_cast<const Element*>(e.down) + part.group.expert * e.width * e.inner;
    columns_as_lanes<T>(part.rows, grads, down, e.width, e.inner, c0, c1, packed,
                        [&](int64_t r, int64_t rows, int64_t c, int64_t lanes, float* da) {
                          differentiate(part, r, rows, c, lanes, da);
                        });
  }

  // da: gradients [rows][kPanel] of the activation, before the weight of the row.
  void differentiate(const Part& part, int64_t r0, int64_t rows, int64_t c, int64_t lanes,
                     float* da) const {
    const int64_t panels = units_of(e.inner, kPanel), first = part.first() + r0;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t p = first + r, slot = e.gather[p];
      const F w = splat(slot < 0 ? 0.0f : f.weights[slot]), one = splat(1.0f);
      const Element* h = static_cast<const Element*>(f.h) + p * 2 * e.inner + c;
      Element* dh = static_cast<Element*>(f.dh) + p * 2 * e.inner + c;
      F dot{};
      for (int64_t n = 0; n < lanes; n += kWidth) {
        const int64_t count = lanes - n;
        const F gate = load_elements(h + n, count), up = load_elements(h + e.inner + n, count);
        const F s = one / (one + exp(-gate)), silu = gate * s, a = silu * up;
        const F d = load(da + r * kPanel + n), weighted = d * w;
        dot += d * a;
        store_some<T>(dh + n, weighted * up * s * (one + gate * (one - s)), count);
        store_some<T>(dh + e.inner + n, weighted * silu, count);
        store(da + r * kPanel + n, a * w);
      }
      float sum = 0;
      for (int n = 0; n < kWidth; ++n) sum += dot[n];
      f.dweights[p * panels + c / kPanel] = sum;
    }
    if (!f.activation) return;
    uint32_t* out = pairs(f.activation, part.group, e.inner, c) +
                    (part.row + r0) / T::kPerUnit * kPanel;
    for (int64_t r = 0; r < rows; r += T::kPerUnit, out += kPanel)
      for (int64_t n = 0; n < lanes; n += kWidth) {
        const float* low = da + r * kPanel + n;
        store_as(out + n, T::units(load(low), r + 1 < rows ? load(low + kPanel) : F{}));
      }
  }

  static F load_elements(const Element* p, int64_t count) {
    if (count >= kWidth) return T::load(p);
    Element all[kWidth] = {};
    memcpy(all, p, count * sizeof(Element));
    return T::load(all);
  }

  void pack_x(const Group& group, int64_t c0, int64_t c1) const {
    for (int64_t c = c0; c < c1; c += kPanel)
      pack_pairs<T>(group.rows, at_most(c1 - c, kPanel), [&](int64_t i) {
        const Element* row = of_token(f.x, group.row + i);
        return row ? row + c : nullptr;
      }, pairs(f.x_pairs, group, e.width, c));
  }

  void rows(const Part& part, int64_t c0, int64_t c1, uint32_t* packed) const {
    const int64_t units = units_of(2 * e.inner, T::kPerUnit);
    const auto* gate_up = static_cast<const Element*>(e.gate_up);
    auto* out = static_cast<Element*>(f.drows) + part.first() * e.width;
    columns_as_lanes<T>(part.rows, static_cast<const uint32_t*>(f.dh) + part.first() * units,
                        gate_up + part.group.expert * 2 * e.inner * e.width, 2 * e.inner, e.width,
                        c0, c1, packed,
                        [&](int64_t r, int64_t count, int64_t c, int64_t lanes, const float* z) {
                          store_tile<T>(z, count, lanes, out + r * e.width + c, e.width);
                        });
  }

  void gate_up(const Group& group, int64_t m0, int64_t m1, uint32_t* packed) const {
    const auto* dh = static_cast<const Element*>(f.dh) + group.row * 2 * e.inner;
    sum_of_rows<T>(group.rows, [&](int64_t i) { return dh + i * 2 * e.inner; }, m0, m1,
                   pairs(f.x_pairs, group, e.width, 0), e.width, packed,
                   static_cast<Element*>(f.dgate_up) + group.expert * 2 * e.inner * e.width);
  }

  void down(const Group& group, int64_t m0, int64_t m1, uint32_t* packed) const {
    sum_of_rows<T>(group.rows, [&](int64_t i) { return of_token(f.grad, group.row + i); }, m0, m1,
                   pairs(f.activation, group, e.inner, 0), e.inner, packed,
                   static_cast<Element*>(f.ddown) + group.expert * e.width * e.inner);
  }
};
}  // namespace

void moe_experts_backward_activation(const ExpertsBackward& f, const Part& part, int64_t c0,
                                     int64_t c1, uint32_t* scratch) {
  f.layer.bf16 ? Pass<BF16>{f}.activation(part, c0, c1, scratch)
               : Pass<F32>{f}.activation(part, c0, c1, scratch);
}
void moe_experts_backward_pack(const ExpertsBackward& f, const Group& group, int64_t c0,
                               int64_t c1) {
  f.layer.bf16 ? Pass<BF16>{f}.pack_x(group, c0, c1) : Pass<F32>{f}.pack_x(group, c0, c1);
}
void moe_experts_backward_rows(const ExpertsBackward& f, const Part& part, int64_t c0, int64_t c1,
                               uint32_t* scratch) {
  f.layer.bf16 ? Pass<BF16>{f}.rows(part, c0, c1, scratch)
               : Pass<F32>{f}.rows(part, c0, c1, scratch);
}
void moe_experts_backward_gate_up(const ExpertsBackward& f, const Group& group, int64_t m0,
                                  int64_t m1, uint32_t* scratch) {
  f.layer.bf16 ? Pass<BF16>{f}.gate_up(group, m0, m1, scratch)
               : Pass<F32>{f}.gate_up(group, m0, m1, scratch);
}
void moe_experts_backward_down(const ExpertsBackward& f, const Group& group, int64_t m0, int64_t m1,
                               uint32_t* scratch) {
  f.layer.bf16 ? Pass<BF16>{f}.down(group, m0, m1, scratch)
               : Pass<F32>{f}.down(group, m0, m1, scratch);
}
}  // namespace r1::R1_ISA

#ifdef R1_BASELINE
#include "cpu/moe/experts_layer.h"

R1_DECLARE(void moe_experts_backward_activation(const ExpertsBackward&, const Part&, int64_t,
                                                int64_t, uint32_t*))
R1_DECLARE(void moe_experts_backward_pack(const ExpertsBackward&, const Group&, int64_t, int64_t))
R1_DECLARE(void moe_experts_backward_rows(const ExpertsBackward&, const Part&, int64_t, int64_t,
                                          uint32_t*))
R1_DECLARE(void moe_experts_backward_gate_up(const ExpertsBackward&, const Group&, int64_t, int64_t,
                                             uint32_t*))
R1_DECLARE(void moe_experts_backward_down(const ExpertsBackward&, const Group&, int64_t, int64_t,
                                          uint32_t*))

namespace r1 {
namespace {
std::tuple<Tensor, Tensor, Tensor, Tensor> moe_experts_backward(
    Tensor grad, Tensor x, Tensor gate_up, Tensor down, Tensor weights, Tensor offsets,
    Tensor gather, Tensor inverse, Tensor h, bool frozen) {
  check_experts("moe_experts_backward", x, gate_up, down);
  const ExpertsLayer layer("moe_experts_backward", x, dense(gate_up), dense(down), weights, offsets,
                           gather, inverse);
  const Experts& e = layer.kernel;
  const Groups& all = layer.groups;
  const int64_t size = x.element_size(), up = 2 * e.inner;
  R1_CHECK(grad.dim() == 2 && grad.size(0) == x.size(0) && grad.size(1) == e.width,
           "moe_experts_backward: grad: expected the shape of x");
  R1_CHECK(h.scalar_type() == x.scalar_type() && h.dim() == 2 && h.size(0) == all.rows && h.size(1) == up,
           "moe_experts_backward: h: expected shape [P, 2I] and the dtype of x");
  const Tensor upstream = to_dtype(grad, x.scalar_type()), tokens = dense(x), kept = dense(h);
  Tensor dx = new_output(x, {x.size(0), e.width});
  Tensor dweights = new_empty(weights, {weights.size(0), weights.size(1)}, ScalarType::Float);
  Tensor dgate_up = frozen ? new_output(x, {0}) : new_output(x, {all.experts, up, e.width});
  Tensor ddown = frozen ? new_output(x, {0}) : new_output(x, {all.experts, e.width, e.inner});

  const int64_t panels = (e.inner + kPanel - 1) / kPanel, pairs = frozen ? 0 : all.units * kPanel;
  const int64_t x_pairs = pairs * ((e.width + kPanel - 1) / kPanel) * sizeof(uint32_t);
  Buffer<char> dh(all.rows * up * size);
  Buffer<float> parts(all.rows * panels);
  Buffer<uint32_t> activation(pairs * panels);
  // x in pairs is read for the last time before the rows' gradients are written: both go here.
  Buffer<char> rows(std::max(x_pairs, all.rows * e.width * size));
  const int64_t grads = kPartRows * layer.units(e.width);
  const int64_t panel = kPanel * std::max({layer.units(e.width), layer.units(up), all.longest});
  const int64_t scratch = grads + panel;
  Buffer<uint32_t> own(workers() * scratch);
  const ExpertsBackward f{e, tokens.data_ptr(), upstream.data_ptr(), kept.data_ptr(),
                          data<float>(layer.weights), dh.p, rows.p, parts.p,
                          frozen ? nullptr : activation.p, reinterpret_cast<uint32_t*>(rows.p),
                          dgate_up.data_ptr(), ddown.data_ptr()};
  auto with_scratch = [&](auto kernel) {
    return [&f, &own, scratch, kernel](const auto& item, int64_t c0, int64_t c1, int worker) {
      kernel(f, item, c0, c1, own.p + worker * scratch);
    };
  };
  each_block(all.parts, e.inner, kPanel, with_scratch(R1_DISPATCH(moe_experts_backward_activation)));
  if (!frozen) {
    const auto pack = R1_DISPATCH(moe_experts_backward_pack);
    each_block(all.groups, e.width, kPanel,
               [&](const Group& g, int64_t c0, int64_t c1, int) { pack(f, g, c0, c1); });
    each_block(all.groups, up, kPanel, with_scratch(R1_DISPATCH(moe_experts_backward_gate_up)));
    each_block(all.groups, e.width, kPanel, with_scratch(R1_DISPATCH(moe_experts_backward_down)));
    all.clear_weights(dgate_up);
    all.clear_weights(ddown);
  }
  each_block(all.parts, e.width, kPanel, with_scratch(R1_DISPATCH(moe_experts_backward_rows)));
  layer.combine(rows.p, nullptr, dx);
  all.clear_others(parts.p, panels * sizeof(float));
  for (int64_t slot = 0; slot < weights.numel(); ++slot) {
    const int64_t p = layer.slots.inverse[slot];
    float sum = 0;
    for (int64_t i = 0; p >= 0 && i < panels; ++i) sum += parts[p * panels + i];
    data<float>(dweights)[slot] = sum;
  }
  return {dx, dgate_up, ddown, dweights};
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "moe_experts_backward(Tensor grad, Tensor x, Tensor gate_up, Tensor down, Tensor weights, "
      "Tensor offsets, Tensor gather, Tensor inverse, Tensor h, bool frozen) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) {
  m.impl("moe_experts_backward", TORCH_BOX(&moe_experts_backward));
}
}  // namespace r1
#endif
