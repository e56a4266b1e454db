"""Programs that a model wrote, run where they can harm nobody, and judged by test cases.

`run_tests(program, language, tests, limits)` (`judge.py`) is what callers use: tests of a row come
from `read_tests` (`cases.py`), limits are a `Limits` (`limits.py`). `require_isolation`
(`isolation.py`) refuses, with the remedy, where the machine cannot contain such programs.

    from r1train.sandbox.cases import read_tests
    from r1train.sandbox.isolation import require_isolation
    from r1train.sandbox.judge import run_tests
    from r1train.sandbox.limits import Limits

    require_isolation("python")  # ConfigError, before anything is run
    tests = read_tests(row)  # None where the row has no test cases
    results = run_tests(program, "python", tests, Limits(cpu_seconds=6))  # one for each test
    passed = all(result.passed for result in results)

A call is synchronous, thread-safe and waits for processes, so several of them may run in threads.

Below it, `box.py` runs one program once: it starts `inside/jail.py`, which makes the namespaces,
the root and the limits, and then becomes the program. `seccomp.py` and `syscalls.py` are the list
of system calls that are left to it.
"""
