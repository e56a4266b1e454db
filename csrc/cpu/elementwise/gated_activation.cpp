// gated_activation and its backward pass: one read of each input, one write of each result.
#include "cpu/elementwise/gated_activation.h"

#include "cpu/elementwise/elementwise.h"

namespace r1::R1_ISA {
namespace {
// 1/(1 + e^-x), with as much as ±88 for what is beyond; NaN stays NaN.
inline F sigmoid(F x) {
  const Exponential e = reduced_exp(min(splat(88.0f), max(splat(-87.3f), -x)));
  return splat(1.0f) / (splat(1.0f) + e.of_rest * (F)((e.n + 127) << 23));
}

struct Slope {
  F value, derivative;
};

struct Silu {
  static inline F value(F g) { return g * sigmoid(g); }
  static inline Slope slope(F g) {
    const F one = splat(1.0f), s = sigmoid(g);
    return {g * s, s * (one + g * (one - s))};
  }
};

// (1 + tanh x)/2 is the sigmoid of 2x.
struct GeluTanh {
  static constexpr float kTwice = 1.59576912160573072f;  // 2·√(2/π)
  static constexpr float kCubic = 0.044715f * kTwice;
  static inline F half(F g) { return sigmoid(g * (splat(kTwice) + splat(kCubic) * (g * g))); }
  static inline F value(F g) { return g * half(g); }
  static inline Slope slope(F g) {
    const F s = half(g), inner = splat(kTwice) + splat(3 * kCubic) * (g * g);
    return {g * s, s + g * s * (splat(1.0f) - s) * inner};
  }
};

struct Gelu {
  static inline F cumulative(F g) {
    return splat(0.5f) * (splat(1.0f) + erf(g * splat(0.707106781186547524f)));
  }
  static inline F value(F g) { return g * cumulative(g); }
  static inline Slope slope(F g) {
    const F below = cumulative(g);
    const F density = splat(0.398942280401432678f) * exp_nonpositive(splat(-0.5f) * g * g);
    return {g * below, below + g * density};
  }
};

template <class T>
struct Row {
  using E = typename T::Element;
  const E *gate, *up;
  E* out;

  Row(const GatedActivation& a, int64_t row, int64_t begin)
      : gate(static_cast<const E*>(a.gate) + row * a.gate_row + begin),
        up(static_cast<const E*>(a.up) + row * a.up_row + begin),
        out(static_cast<E*>(a.out) + row * a.width + begin) {}
};

template <class T, class Act>
void forward(const GatedActivation& a, int64_t row, int64_t begin, int64_t end) {
  const Row<T> r(a, row, begin);
  each_chunk(end - begin, [&](int64_t i, int64_t left) __attribute__((always_inline)) {
    const Chunk gate = load_chunk<T>(r.gate + i, left);
    const Chunk activated = nearest<T>({Act::value(gate.a), Act::value(gate.b)});
    store_chunk<T>(r.out + i, activated * load_chunk<T>(r.up + i, left), left);
  });
}

template <class T, class Act>
void backward(const GatedActivationBackward& b, int64_t row, int64_t begin, int64_t end) {
  using E = typename T::Element;
  const Row<T> r(b.forward, row, begin);
  const int64_t at = row * b.forward.width + begin;
  const E* dy = static_cast<const E*>(b.dy) + at;
  E* dup = static_cast<E*>(b.dup) + at;
  each_chunk(end - begin, [&](int64_t i, int64_t left) __attribute__((always_inline)) {
    const Chunk d = load_chunk<T>(dy + i, left), gate = load_chunk<T>(r.gate + i, left);
    const Slope first = Act::slope(gate.a), second = Act::slope(gate.b);
    const Chunk through = nearest<T>(d * load_chunk<T>(r.up + i, left));
    store_chunk<T>(r.out + i, through * Chunk{first.derivative, second.derivative}, left);
    store_chunk<T>(dup + i, d * nearest<T>({first.value, second.value}), left);
  });
}

// Calls body with what `a` says as types: of the elements and of the activation.
template <class Body>
inline void with_types(const GatedActivation& a, const Body& body) {
  const auto both = [&](auto element) {
    switch (a.activation) {
      case Activation::silu: return body(element, Silu{});
      case Activation::gelu_tanh: return body(element, GeluTanh{});
      case Activation::gelu: return body(element, Gelu{});
    }
  };
  a.bf16 ? both(BF16{}) : both(F32{});
}
}  // namespace

void gated_activation_columns(const GatedActivation& a, int64_t row, int64_t begin, int64_t end) {
  with_types(a, [&](auto element, auto activation) {
    forward<decltype(element), decltype(activation)>(a, row, begin, end);
  });
}

void gated_activation_backward_columns(const GatedActivationBackward& b, int64_t row, int64_t begin,
                                       int64_t end) {
  with_types(b.forward, [&](auto element, auto activation) {
    backward<decltype(element), decltype(activation)>(b, row, begin, end);
  });
}
}  // namespace r1::R1_ISA

#ifdef R1_BASELINE
#include <string>

#include "common/text.h"
#include "cpu/common/outputs.h"
#include "cpu/common/parallel.h"
#include "cpu/common/rows.h"

namespace r1 {
namespace {
// Rows of the last dimension at one distance from each other, or else a copy of them.
struct Strided {
  Tensor tensor;
  int64_t row;  // elements from one to the next

  explicit Strided(const Tensor& t) : tensor(t), row(0) {
    const int64_t last = t.dim() - 1, width = t.size(last);
    bool regular = t.stride(last) == 1 || width == 1;
    int64_t inner = last - 1;  // the innermost dimension of more than one row
    while (inner > 0 && t.size(inner) == 1) --inner;
    row = inner >= 0 ? t.stride(inner) : width;
    int64_t rows = 1;
    for (int64_t dim = last - 1; dim >= 0; --dim) {
      regular &= t.size(dim) == 1 || t.stride(dim) == row * rows;
      rows *= t.size(dim);
    }
    if (regular) return;
    tensor = dense(t);
    row = width;
  }
};

Activation activation_of(const char* op, const std::string& name) {
  if (name == "silu") return Activation::silu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  R1_CHECK(name == "gelu", op, ": activation: expected silu, gelu_tanh or gelu, got ", name);
  return Activation::gelu;
}

struct Gated {
  Strided gate, up;
  std::vector<int64_t> sizes;
  int64_t rows;
  GatedActivation kernel;

  Gated(const char* op, const Tensor& g, const Tensor& u, const std::string& activation)
      : gate(checked(op, g, u)), up(u), sizes(g.sizes().begin(), g.sizes().end()),
        rows(g.numel() / std::max<int64_t>(sizes.back(), 1)),
        kernel{is_bf16(g), activation_of(op, activation), sizes.back(), gate.tensor.data_ptr(),
               up.tensor.data_ptr(), gate.row, up.row, nullptr} {
    const bool one_row = gate.row == sizes.back() && up.row == sizes.back();
    if (one_row) {  // whatever the width, tasks of one size
      kernel.width = g.numel();
      rows = g.numel() > 0;
    }
  }

  template <class Body>
  void each(int64_t bytes, const Body& body) const {
    const int64_t step = items_a_task(bytes), blocks = (kernel.width + step - 1) / step;
    const int64_t together = std::max<int64_t>(step / std::max<int64_t>(kernel.width, 1), 1);
    if (blocks > 1) {
      parallel(rows * blocks, [&](int64_t task, int) {
        const int64_t begin = task % blocks * step;
        body(task / blocks, begin, std::min(kernel.width, begin + step));
      });
      return;
    }
    parallel_ranges(rows, together, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) body(row, 0, kernel.width);
    });
  }

 private:
  static const Tensor& checked(const char* op, const Tensor& gate, const Tensor& up) {
    R1_CHECK(gate.dim() > 0, op, ": gate: expected shape […, I]");
    R1_CHECK(up.dim() == gate.dim() && std::equal(up.sizes().begin(), up.sizes().end(), gate.sizes().begin()),
             op, ": up: expected the shape of gate");
    R1_CHECK(up.scalar_type() == gate.scalar_type(), op, ": up: expected the dtype of gate");
    return gate;
  }
};

Tensor gated_activation(Tensor gate, Tensor up, Text activation) {
  Gated g("gated_activation", gate, up, activation);
  Tensor out = new_output(gate, g.sizes);
  g.kernel.out = out.data_ptr();
  const auto kernel = R1_DISPATCH(gated_activation_columns);
  g.each(3 * gate.element_size(), [&](int64_t row, int64_t begin, int64_t end) {
    kernel(g.kernel, row, begin, end);
  });
  return out;
}

std::tuple<Tensor, Tensor> gated_activation_backward(Tensor dy, Tensor gate, Tensor up,
                                                     Text activation) {
  constexpr const char* op = "gated_activation_backward";
  Gated g(op, gate, up, activation);
  R1_CHECK(dy.dim() == gate.dim() && std::equal(dy.sizes().begin(), dy.sizes().end(), g.sizes.begin()),
           op, ": dy: expected the shape of gate");
  const Tensor upstream = to_dtype(dy, gate.scalar_type());
  Tensor dgate = new_output(gate, g.sizes), dup = new_output(up, g.sizes);
  g.kernel.out = dgate.data_ptr();
  const GatedActivationBackward b{g.kernel, upstream.data_ptr(), dup.data_ptr()};
  const auto kernel = R1_DISPATCH(gated_activation_backward_columns);
  g.each(5 * gate.element_size(), [&](int64_t row, int64_t begin, int64_t end) {
    kernel(b, row, begin, end);
  });
  return {dgate, dup};
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def("gated_activation(Tensor gate, Tensor up, str activation) -> Tensor");
  m.def(
      "gated_activation_backward(Tensor dy, Tensor gate, Tensor up, str activation) "
      "-> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) {
  m.impl("gated_activation", TORCH_BOX(&gated_activation));
  m.impl("gated_activation_backward", TORCH_BOX(&gated_activation_backward));
}
}  // namespace r1
#endif
