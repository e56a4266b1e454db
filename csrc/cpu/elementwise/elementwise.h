// What the elementwise kernels share: elements taken in chunks of two vectors, and the last ones of a
// row, fewer than a vector or a chunk holds.
#pragma once

#include "cpu/common/gemm_operands.h"

namespace r1::R1_ISA {
constexpr int64_t kChunk = 2 * kWidth;

// Neighbouring elements in fp32, in an order of their own: those of 16 bits are the even ones and the
// odd ones, for which two need the instructions that one takes to be widened in order.
struct Chunk {
  F a, b;
};
static inline Chunk operator+(Chunk x, Chunk y) { return {x.a + y.a, x.b + y.b}; }
static inline Chunk operator-(Chunk x, Chunk y) { return {x.a - y.a, x.b - y.b}; }
static inline Chunk operator*(Chunk x, Chunk y) { return {x.a * y.a, x.b * y.b}; }
static inline Chunk operator*(Chunk x, F y) { return {x.a * y, x.b * y}; }

// Of floats that were stored in the order of chunks.
static inline Chunk load_chunk(const float* p) { return {load(p), load(p + kWidth)}; }
static inline void store_chunk(float* p, Chunk v) {
  store(p, v.a);
  store(p + kWidth, v.b);
}

// T's elements in memory and in chunks. `nearest` rounds to elements. A NaN that comes from elements
// of 16 bits has no bits below them, so that rounding keeps it without being asked to.
template <class T>
struct Chunks;

template <>
struct Chunks<F32> {
  static inline Chunk load(const float* p) { return load_chunk(p); }
  static inline void store_exact(float* p, Chunk v) { store_chunk(p, v); }
  static inline Chunk nearest(Chunk v) { return {apart(v.a), apart(v.b)}; }
};

template <>
struct Chunks<BF16> {
  static inline Chunk load(const uint16_t* p) {
    const U u = load_as<U>(p);
    return {(F)(u << 16), (F)(u & 0xffff0000u)};
  }
  static inline void store_exact(uint16_t* p, Chunk v) { store_as(p, (U)v.a >> 16 | (U)v.b); }
#ifdef __AVX512BF16__
  static inline F nearest(F v) { return BF16::rounded(v); }
#else
  static inline F nearest(F v) {
    const U u = (U)v;
    return (F)((u + 0x7fff + ((u >> 16) & 1)) & 0xffff0000u);
  }
#endif
  static inline Chunk nearest(Chunk v) { return {nearest(v.a), nearest(v.b)}; }
};

template <class T>
static inline Chunk nearest(Chunk v) {
  return Chunks<T>::nearest(v);
}

// The first `count` elements of a chunk, with zeros after them.
template <class T>
static inline Chunk load_chunk(const typename T::Element* p, int64_t count) {
  if (count >= kChunk) return Chunks<T>::load(p);
  typename T::Element all[kChunk] = {};
  memcpy(all, p, count * sizeof(*all));
  return Chunks<T>::load(all);
}

// Of values that are elements already.
template <class T>
static inline void store_exact(typename T::Element* p, Chunk v, int64_t count) {
  if (count >= kChunk) return Chunks<T>::store_exact(p, v);
  typename T::Element all[kChunk];
  Chunks<T>::store_exact(all, v);
  memcpy(p, all, count * sizeof(*all));
}
template <class T>
static inline void store_chunk(typename T::Element* p, Chunk v, int64_t count) {
  store_exact<T>(p, nearest<T>(v), count);
}

// Calls body(i, left) for every chunk of a row: `left` elements are there from i on.
template <class Body>
static inline void each_chunk(int64_t width, const Body& body) {
  int64_t i = 0;
  for (; i + kChunk <= width; i += kChunk) body(i, kChunk);
  if (i < width) body(i, width - i);
}

// The first `count` lanes of a vector in order, with zeros after them.
template <class T>
static inline F load_some(const typename T::Element* p, int64_t count) {
  if (count >= kWidth) return T::load(p);
  typename T::Element all[kWidth] = {};
  memcpy(all, p, count * sizeof(*all));
  return T::load(all);
}
}  // namespace r1::R1_ISA
