// Blocks are mapped by themselves, in large pages where the system has them. One that comes back is
// marked as free to be taken from the process (MADV_FREE), which costs nothing unless it happens.
#include "cpu/common/blocks.h"

#include "cpu/common/isa.h"

#ifdef R1_BASELINE
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <vector>

#include "common/op.h"

namespace r1 {
namespace {
constexpr int64_t kPage = 2 << 20;

struct Block {
  void* p;
  int64_t bytes;
};

// An eighth of the machine: what lies idle is the system's to take, but counts as this process's
// until then.
int64_t most_idle() {
  return int64_t(sysconf(_SC_PHYS_PAGES)) * int64_t(sysconf(_SC_PAGESIZE)) / 8;
}

class Blocks {
 public:
  void* take(int64_t bytes) {
    const int64_t size = (bytes + kPage - 1) / kPage * kPage;
    const std::lock_guard lock(mutex_);
    // The smallest that is large enough; of one much larger a later call would miss the rest.
    auto best = idle_.end();
    for (auto at = idle_.begin(); at != idle_.end(); ++at)
      if (at->bytes >= size && at->bytes <= 2 * size && (best == idle_.end() || at->bytes < best->bytes))
        best = at;
    if (best == idle_.end()) return fresh(size);
    const Block block = *best;
    idle_.erase(best);
    taken_[block.p] = block.bytes;
    return block.p;
  }

  void give(void* p) {
    const std::lock_guard lock(mutex_);
    const auto at = taken_.find(p);
    const Block block{p, at->second};
    taken_.erase(at);
    madvise(block.p, block.bytes, MADV_FREE);
    idle_.push_back(block);
    forget(most_);
  }

  void empty() {
    const std::lock_guard lock(mutex_);
    forget(0);
  }

  // Around a fork, so that no child begins while another thread is in here, which it does not have.
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  void* fresh(int64_t size) {
    void* p = map(size);
    if (!p) {
      forget(0);
      p = map(size);
    }
    R1_CHECK(p, "r1kernels: out of memory for ", size, " bytes");
    taken_[p] = size;
    return p;
  }

  // Whole large pages, cut out of a range that has one more.
  static void* map(int64_t size) {
    void* range = mmap(nullptr, size + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (range == MAP_FAILED) return nullptr;
    auto* begin = static_cast<char*>(range);
    const int64_t before = -reinterpret_cast<uintptr_t>(begin) % kPage;
    if (before > 0) munmap(begin, before);
    munmap(begin + before + size, kPage - before);
    madvise(begin + before, size, MADV_HUGEPAGE);
    return begin + before;
  }

  // Until no more than `most` bytes are idle; those that have been so for longest first.
  void forget(int64_t most) {
    int64_t total = 0;
    for (const Block& block : idle_) total += block.bytes;
    auto last = idle_.begin();
    for (; last != idle_.end() && total > most; ++last) {
      total -= last->bytes;
      munmap(last->p, last->bytes);
    }
    idle_.erase(idle_.begin(), last);
  }

  std::mutex mutex_;
  std::map<void*, int64_t> taken_;
  std::vector<Block> idle_;  // in the order in which they came back
  const int64_t most_ = most_idle();
};

// Never destroyed: tensors may outlive every static object.
Blocks& blocks() {
  static auto* all = [] {
    const auto unlock = [] { blocks().unlock(); };
    pthread_atfork([] { blocks().lock(); }, unlock, unlock);
    return new Blocks;
  }();
  return *all;
}

void empty_cache() { blocks().empty(); }
}  // namespace

void* take_block(int64_t bytes) { return blocks().take(bytes); }
void return_block(void* block) { blocks().give(block); }

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) { m.def("empty_cache() -> ()"); }
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CompositeExplicitAutograd, m) {
  m.impl("empty_cache", TORCH_BOX(&empty_cache));
}
}  // namespace r1
#endif
