// Tasks over PyTorch's own threads. Tasks are handed out as threads become free, so a slow core
// delays one task; results do not depend on it, since a task's work is fixed by its number alone.
#pragma once

#include <atomic>
#include <cstdint>

extern "C" {
int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t grain,
                           void (*body)(int64_t, int64_t, void*), void* context);
int32_t torch_get_num_threads(uint32_t* count);
}

namespace r1 {
inline int workers() {
  uint32_t count = 1;
  torch_get_num_threads(&count);
  return static_cast<int>(count);
}

// Calls body(task, worker) for every task in [0, tasks); worker < workers() indexes scratch memory.
template <class Body>
static void parallel(int64_t tasks, const Body& body) {
  struct Context {
    std::atomic<int64_t> next{0};
    int64_t tasks;
    const Body* body;
  } context;
  context.tasks = tasks;
  context.body = &body;
  const int64_t threads = tasks < workers() ? tasks : workers();
  torch_parallel_for(
      0, threads, 1,
      [](int64_t begin, int64_t end, void* raw) {
        auto& c = *static_cast<Context*>(raw);
        for (int64_t worker = begin; worker < end; ++worker)
          for (int64_t task; (task = c.next.fetch_add(1, std::memory_order_relaxed)) < c.tasks;)
            (*c.body)(task, static_cast<int>(worker));
      },
      &context);
}

// As many items, of `bytes` each, as move enough to be worth a task.
static inline int64_t items_a_task(int64_t bytes) {
  constexpr int64_t kTask = 1 << 16;
  return bytes <= 0 || bytes > kTask ? 1 : kTask / bytes;
}

// Calls body(begin, end) for ranges of [0, count), of `step` items each.
template <class Body>
static void parallel_ranges(int64_t count, int64_t step, const Body& body) {
  parallel((count + step - 1) / step, [&](int64_t task, int) {
    const int64_t end = (task + 1) * step;
    body(task * step, end < count ? end : count);
  });
}
}  // namespace r1
