// moe_route of some rows. A few of them go through every stage together: each round of the choice
// waits for the last one, and rows do not wait for each other.
//
// Keys are doubles. NaN stands for "not to be chosen (any more)"; comparisons pass over it.
#include "cpu/moe/route_scores.h"

namespace r1::R1_ISA {
namespace {
constexpr double kAbsent = __builtin_nan("");
constexpr int64_t kTogether = 4;

struct Row {
  double* logits;  // [logits_room]
  double* keys;    // [blocks.count, blocks.width]
  double* best;    // of each block
  double* group;   // what each group is chosen by
  double* use;     // `best` of the groups in use
  double* in_use;  // that, or `best` where there are no groups
  double *chosen, *scores;  // [padded(top_k)]
  Softmax softmax;
};

int64_t room(const MoeRoute& r) {
  return padded(r.logits_room()) + r.blocks.count * r.blocks.width + 3 * r.blocks.end() +
         2 * padded(r.scoring.top_k);
}

Row row_in(const MoeRoute& r, double* p) {
  Row row{};
  row.logits = p;
  row.keys = row.logits + padded(r.logits_room());
  row.best = row.keys + r.blocks.count * r.blocks.width;
  row.group = row.best + r.blocks.end();
  row.use = row.group + r.blocks.end();
  row.chosen = row.use + r.blocks.end();
  row.scores = row.chosen + padded(r.scoring.top_k);
  return row;
}

// The two largest of each lane, of numbers that come one after the other.
struct Best {
  D first = splat_double(-kInfinity), second = splat_double(-kInfinity);

  void operator+=(D v) {
    second = larger(smaller(v, first), second);
    first = larger(v, first);
  }
  template <int by>
  void fold() {
    const D other = rotated<by>(first);
    second = larger(larger(second, rotated<by>(second)), smaller(first, other));
    first = larger(first, other);
  }
  void fold_lanes() {
    if constexpr (kDoubles >= 8) fold<4>();
    if constexpr (kDoubles >= 4) fold<2>();
    fold<1>();
  }
};

inline double largest(const double* p, int64_t count) {
  D v = splat_double(-kInfinity);
  for (int64_t i = 0; i < count; i += kDoubles) v = larger(load_double(p + i), v);
  return largest_lane(v);
}

// The first place that holds `value`, −1 if none does. Without a branch on the way, up to 64.
inline int64_t find(const double* p, int64_t count, double value) {
  for (int64_t begin = 0; begin < count; begin += 64) {
    uint64_t bits = 0;
    for (int64_t i = 0; i < 64 && begin + i < count; i += kDoubles)
      bits |= equal_lanes(load_double(p + begin + i), splat_double(value)) << i;
    if (bits) return begin + __builtin_ctzll(bits);
  }
  return -1;
}

// σ(z) + σ(−z) is 1, but not to the last bit: sums are compared to 48 bits, which any exponential
// gets right.
inline double to_48_bits(double sum) {
  uint64_t bits;
  memcpy(&bits, &sum, 8);
  bits = (bits + 16) & ~uint64_t(31);
  memcpy(&sum, &bits, 8);
  return sum;
}

template <class Key>
void make_keys(const MoeRoute& r, const Row& row, const Key& key_of) {
  const L lanes = lane_numbers();
  const Blocks blocks = r.blocks;
  for (int64_t b = 0; b < blocks.count; ++b) {
    const int64_t at = blocks.first(b), left = r.scoring.experts - at;
    const int64_t count = left < blocks.size ? left : blocks.size;
    const double *logits = row.logits + at, *bias = r.bias ? r.bias + at : nullptr;
    double* keys = row.keys + b * blocks.width;
    for (int64_t i = 0; i < blocks.width; i += kDoubles) {
      D key = key_of(load_double(logits + i));
      if (bias) key += load_double(bias + i);
      key = key == key ? key : splat_double(-kInfinity);
      if (i + kDoubles > count) key = lanes < L{} + (count - i) ? key : splat_double(kAbsent);
      store_double(keys + i, key);
    }
  }
}

void make_keys(const MoeRoute& r, const Row& row) {
  if (!r.by_score) make_keys(r, row, [](D z) { return z; });
  else if (r.scoring.score == Score::sigmoid) make_keys(r, row, [](D z) { return sigmoid(z); });
  else if (r.scoring.score == Score::softmax) make_keys(r, row, row.softmax);
  else make_keys(r, row, [](D z) { return sqrtsoftplus(z); });
}

// What blocks are chosen by. Apart from the keys: a block then waits for its own alone.
void rate_blocks(const MoeRoute& r, const Row& row) {
  const Blocks blocks = r.blocks;
  for (int64_t b = 0; b < blocks.count; ++b) {
    Best best;
    for (int64_t i = 0; i < blocks.width; i += kDoubles)
      best += load_double(row.keys + b * blocks.width + i);
    best.fold_lanes();
    const double sum = best.first[0] + best.second[0];
    row.best[b] = best.first[0];
    row.group[b] = !r.pairs ? best.first[0] : sum == sum ? to_48_bits(sum) : -kInfinity;
  }
  for (int64_t b = blocks.count; b < blocks.end(); ++b) row.best[b] = row.group[b] = kAbsent;
}

void use_best_group(const MoeRoute& r, const Row& row) {
  const int64_t b = find(row.group, r.blocks.end(), largest(row.group, r.blocks.end()));
  put(row.group, b, kAbsent);
  put(row.use, b, row.best[b]);
}

// Takes the best key out of the blocks: of equal ones the first.
int64_t take_best(const MoeRoute& r, const Row& row) {
  const Blocks& blocks = r.blocks;
  const double key = largest(row.in_use, blocks.end());
  for (;;) {
    const int64_t b = find(row.in_use, blocks.end(), key);
    double* keys = row.keys + b * blocks.width;
    const int64_t i = find(keys, blocks.width, key);
    if (i < 0) {  // a block that is used up seems to hold −inf
      put(row.in_use, b, kAbsent);
      continue;
    }
    put(keys, i, kAbsent);
    put(row.in_use, b, largest(keys, blocks.width));
    return blocks.first(b) + i;
  }
}

// Choices of some rows, one round after the other.
void choose(const MoeRoute& r, Row* rows, int64_t count, int64_t* ids) {
  for (int64_t t = 0; t < count; ++t) {
    make_keys(r, rows[t]);
    rate_blocks(r, rows[t]);
    rows[t].in_use = r.groups_used ? rows[t].use : rows[t].best;
    for (int64_t b = 0; r.groups_used && b < r.blocks.end(); ++b) rows[t].use[b] = kAbsent;
  }
  for (int64_t round = 0; round < r.groups_used; ++round)
    for (int64_t t = 0; t < count; ++t) use_best_group(r, rows[t]);
  for (int64_t j = 0; j < r.scoring.top_k; ++j)
    for (int64_t t = 0; t < count; ++t) ids[t * r.scoring.top_k + j] = take_best(r, rows[t]);
}

void replay(const MoeRoute& r, int64_t begin, int64_t end) {
  for (int64_t i = begin * r.scoring.top_k; i < end * r.scoring.top_k; ++i)
    r.ids[i] = names_expert(r.scoring, r.replay_ids[i]) ? r.replay_ids[i] : r.scoring.experts;
}

void weigh(const Scoring& s, const Row& row, const int64_t* ids, float* weights) {
  for (int64_t j = 0; j < s.top_k; ++j)
    if (names_expert(s, ids[j])) row.chosen[j] = row.logits[ids[j]];
  const double sum = scores_of_choices(s, row.softmax, ids, row.chosen, row.scores);
  for (int64_t j = 0; j < s.top_k; ++j) {
    const double score = s.normalises ? row.scores[j] / (sum + kEpsilon) : row.scores[j];
    weights[j] = static_cast<float>(score * s.scale);
  }
}
}  // namespace

int64_t moe_route_room(const MoeRoute& r) { return kTogether * room(r); }

void moe_route_rows(const MoeRoute& r, int64_t begin, int64_t end, double* scratch) {
  const Scoring& s = r.scoring;
  Row rows[kTogether];
  for (int64_t t = 0; t < kTogether; ++t) rows[t] = row_in(r, scratch + t * room(r));
  const int64_t valid = end < r.valid_rows ? end : r.valid_rows;
  for (int64_t t = begin; t < valid; t += kTogether) {
    const int64_t count = valid - t < kTogether ? valid - t : kTogether;
    for (int64_t i = 0; i < count; ++i) {
      load_logits(s, t + i, rows[i].logits);
      if (s.score == Score::softmax && !s.of_chosen)
        rows[i].softmax = softmax_of(rows[i].logits, padded(s.experts));
    }
    if (r.replay_ids) replay(r, t, t + count);
    else choose(r, rows, count, r.ids + t * s.top_k);
    for (int64_t i = 0; i < count; ++i)
      weigh(s, rows[i], r.ids + (t + i) * s.top_k, r.weights + (t + i) * s.top_k);
  }
  for (int64_t i = (valid > begin ? valid : begin) * s.top_k; i < end * s.top_k; ++i) {
    r.ids[i] = s.experts;
    r.weights[i] = 0;
  }
}
}  // namespace r1::R1_ISA
