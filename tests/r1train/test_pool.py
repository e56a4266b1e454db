"""What comes of answers, and of worker processes: outcomes, time limits, frames, endings."""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest

from r1train.rewards.pool import pool as pool_module
from r1train.rewards.pool.frames import FRAME_BYTES, BadFrame, Frame, FrameReader, Kind, decode
from r1train.rewards.pool.pool import Outcome, VerifierPool
from tests.r1train.misbehaving import Misbehaving
from tests.r1train.verifier_pools import RIGHT, judged, linux, script


@pytest.fixture(scope="module")
def impatient():
    with VerifierPool(Misbehaving("sympy"), workers=2, timeout=1.0) as pool:
        pool.run([RIGHT] * 4)
        yield pool


def test_outcomes_come_in_order(pool):
    jobs = [(("right", "wrong")[i % 3 == 0], "right") for i in range(300)]
    assert pool.run(jobs) == [Outcome(float(i % 3 > 0)) for i in range(300)]
    assert pool.run([]) == []


@pytest.mark.parametrize(
    "behaviour",
    [
        "imports_a_module",
        "reads_a_file",
        "fails_to_finalize",
        "sees_the_environment",
        "sees_descriptors",
        "sees_torch",
        "prints",
    ],
)
def test_what_an_honest_verifier_needs_and_sees(pool, behaviour):
    assert judged(pool, "", behaviour) == Outcome(1.0)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ("nan", "the verifier returned nan, expected a score from 0 to 1"),
        ("inf", "the verifier returned inf, expected a score from 0 to 1"),
        ("-0.5", "the verifier returned -0.5, expected a score from 0 to 1"),
        ("1.5", "the verifier returned 1.5, expected a score from 0 to 1"),
    ],
)
def test_a_score_that_is_none_is_an_error(pool, score, message):
    assert judged(pool, score, "returns_number") == Outcome(0.0, "error", message)


def test_a_score_is_a_number(pool):
    message = "the verifier returned a str, expected a score from 0 to 1"
    assert judged(pool, "1.0", "returns_text") == Outcome(0.0, "error", message)
    message = "the verifier returned inf, expected a score from 0 to 1"
    assert judged(pool, "", "returns_evil") == Outcome(0.0, "error", message)


@pytest.mark.parametrize(
    ("behaviour", "answer", "message"),
    [
        ("raises", "error", "ValueError: error"),
        ("raises", "exit", "SystemExit: exit"),
        ("raises", "interrupt", "KeyboardInterrupt: interrupt"),
        ("raises_unprintable", "", "Unprintable"),
        ("recurses", "", "RecursionError: maximum recursion depth exceeded"),
        ("exits", "", "the verifier process ended with status 0"),
        ("aborts", "", "the verifier process was ended by SIG"),
        ("closes_its_pipe", "", "the verifier process closed its pipe"),
    ],
)
def test_an_answer_that_raises_or_ends_its_process(pool, behaviour, answer, message):
    outcome = judged(pool, answer, behaviour)
    assert outcome[:2] == (0.0, "error")
    assert outcome.message.startswith(message)


@linux  # RLIMIT_AS
def test_memory_is_limited(pool):
    assert judged(pool, "", "takes_memory") == Outcome(0.0, "error", "MemoryError: ")


def test_a_message_is_one_short_line(pool):
    message = judged(pool, "", "raises_base").message
    assert message.startswith("BaseException:  [2J longlong")
    assert len(message) <= 243


@pytest.mark.parametrize(
    ("behaviour", "answer", "message"),
    [
        ("forges_this_verdict", "1", "more than a verdict"),
        ("forges_later_verdicts", "1", "more than a verdict"),
        ("forges_this_verdict", "2", "job 2 in place of 1"),
        ("writes_garbage", "", "unknown kind 128"),
        ("writes_without_end", "", "unknown kind 0"),
        ("says_nan", "1", "score nan"),
    ],
)
def test_frames_out_of_turn_are_an_error_of_that_answer_alone(pool, behaviour, answer, message):
    jobs = [RIGHT, (answer, behaviour), *[("wrong", "right"), RIGHT] * 10]
    outcomes = pool.run(jobs + [RIGHT] * 30)[: len(jobs)]  # in one batch
    if behaviour != "forges_this_verdict" or answer != "1":
        assert outcomes.pop(1) == Outcome(0.0, "error", BROKE + message)
    else:  # its own verdict came twice: in one reading, or once the next was asked for
        assert [o.message for o in outcomes if o.failure] in ([BROKE + message], [BROKE_LATER])
        return
    assert outcomes == [Outcome(1.0)] + [Outcome(0.0), Outcome(1.0)] * 10


BROKE = "the verifier process broke its protocol: "
BROKE_LATER = BROKE + "job 1 in place of 2"


@linux  # for /proc
def test_children_are_reaped_and_workers_end(impatient):
    impatient.run([("error", "raises")] * 4)
    wait_until(lambda: not any(children(worker.process.pid) for worker in impatient.workers))
    with VerifierPool(Misbehaving(), workers=1, timeout=20.0) as pool:
        assert pool.run([RIGHT]) == [Outcome(1.0)]
    assert pool.workers[0].process.returncode == 0


@pytest.mark.parametrize(
    ("workers", "timeout"), [(0, 1.0), (1, 0.0), (1, float("nan")), (1, float("inf"))]
)
def test_a_pool_has_workers_and_time(workers, timeout):
    with pytest.raises(ValueError, match="expected workers >= 1 and a finite timeout > 0"):
        VerifierPool(Misbehaving(), workers, timeout)


@pytest.mark.parametrize(
    ("behaviour", "answer"),
    [
        ("sleeps", ""),
        ("sleeps_deaf", ""),  # as code in C is
        ("evaluated", "9**9**9**9"),
        ("parsed", "9**9**9**9"),
    ],
)
def test_an_answer_without_end_is_a_timeout(impatient, behaviour, answer):
    job = (answer, behaviour)
    outcomes = impatient.run([RIGHT, job, RIGHT, job, RIGHT, RIGHT])
    expected = [Outcome(1.0), Outcome(0.0, "timeout", "longer than 1 s")] * 2 + [Outcome(1.0)] * 2
    assert outcomes == expected


def test_a_worker_that_was_killed_is_replaced(impatient):
    for worker in impatient.workers:
        os.kill(worker.process.pid, signal.SIGTERM)  # the trainer's business
        os.kill(worker.process.pid, signal.SIGINT)
    kept = [worker.process.pid for worker in impatient.workers]
    assert impatient.run([RIGHT] * 4) == [Outcome(1.0)] * 4
    assert [worker.process.pid for worker in impatient.workers] == kept
    os.kill(kept[0], signal.SIGKILL)
    impatient.workers[0].process.wait()
    assert impatient.run([RIGHT] * 4) == [Outcome(1.0)] * 4
    assert impatient.workers[1].process.pid == kept[1]


def test_a_run_that_was_broken_off_leaves_nothing_behind(impatient):
    worker = impatient.workers[0]
    assert impatient._send(worker, range(3), [("wrong", "right")] * 3)
    assert impatient.run([RIGHT] * 8) == [Outcome(1.0)] * 8


# The trainer's side, whatever a worker sends.

SCRIPTED = """
import pickle, socket, struct, sys, time
from r1train.rewards.pool.frames import Frame, Kind
channel = socket.socket(fileno=int(sys.argv[1]))
received = channel.makefile("rb")
def receive():
    size = int.from_bytes(received.read(8), "big")
    return pickle.loads(received.read(size)) if size else sys.exit()
receive()
channel.sendall(Frame(Kind.READY).encode())
while True:
    for job, (answer, _) in enumerate(receive()):
        if answer == "right":
            channel.sendall(Frame(Kind.SCORE, job, 1.0).encode())
        else:
            channel.sendall(eval(answer))
            sys.exit("leave" in answer or received.read(1))
"""


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ("b'\\x80\\x05cos\\nsystem\\n(S\\'touch evil\\'\\ntR.' + bytes(300)", "unknown kind 128"),
        ("bytes(1 << 20)", "unknown kind 0"),
        ("Frame(Kind.SCORE, job, float('nan')).encode()", "score nan"),
        ("Frame(Kind.SCORE, job, 2.0).encode()", "score 2.0"),
        ("Frame(Kind.SCORE, job + 1, 1.0).encode()", "an unsolicited verdict on job 2"),
        ("Frame(Kind.READY).encode()", "READY out of turn"),
        ("Frame(Kind.WATCHED, job).encode()", "WATCHED out of turn"),
        ("b'leave'", None),
        ("b''[:len('leave')]", None),
    ],
)
def test_a_worker_that_breaks_the_protocol_fails_one_job(monkeypatch, sent, message):
    monkeypatch.setattr(pool_module, "_PROGRAM", SCRIPTED)
    with VerifierPool(Misbehaving(), workers=1, timeout=20.0) as pool:
        outcomes = pool.run([RIGHT, (sent, "right"), RIGHT, RIGHT, RIGHT, RIGHT])
    message = BROKE + message if message else "the verifier process died"
    assert outcomes == [Outcome(1.0), Outcome(0.0, "error", message), *[Outcome(1.0)] * 4]


def test_a_verdict_too_many_fails_no_job(monkeypatch):
    monkeypatch.setattr(pool_module, "_PROGRAM", SCRIPTED)
    twice = ("Frame(Kind.SCORE, job, 1.0).encode() * 2", "right")
    with VerifierPool(Misbehaving(), workers=2, timeout=20.0) as pool:
        assert pool.run([twice, *[RIGHT] * 3]) == [Outcome(1.0)] * 4
        assert pool.run([RIGHT, RIGHT]) == [Outcome(1.0)] * 2


@pytest.mark.parametrize(
    "frame",
    [
        Frame(Kind.READY),
        Frame(Kind.SCORE, 3, 0.25),
        Frame(Kind.ERROR, 2**32 - 1, 0.0, "ValueError: é"),
    ],
)
def test_frames_survive(frame):
    assert len(frame.encode()) == FRAME_BYTES
    assert decode(frame.encode()) == frame


@pytest.mark.parametrize(
    ("kind", "score", "text"),
    [
        (0, 0.0, b""),
        (7, 0.0, b""),
        (Kind.SCORE, float("nan"), b""),
        (Kind.SCORE, float("inf"), b""),
        (Kind.SCORE, -1e-9, b""),
        (Kind.SCORE, 1 + 1e-9, b""),
        (Kind.ERROR, 1.0, b"an error has no score"),
        (Kind.SCORE, 1.0, b"a score has no message"),
    ],
)
def test_frames_that_nobody_writes(kind, score, text):
    with pytest.raises(BadFrame):
        decode(struct.pack("!BId243s", kind, 0, score, text))


def test_frames_are_cut_from_what_arrives():
    reading, writing = os.pipe()
    reader, data = FrameReader(reading), Frame(Kind.SCORE, 1, 1.0).encode()
    os.write(writing, data + data[:100])
    assert list(reader.frames()) == [decode(data)]
    os.write(writing, data[100:])
    assert list(reader.frames()) == [decode(data)]
    os.close(writing)
    with pytest.raises(EOFError):
        list(reader.frames())
    os.close(reading)


# Whole processes.


VERIFIER_OF_A_SCRIPT = """
from r1train.rewards.pool.pool import VerifierPool
class Mine:
    def warm_up(self): {warm_up}
    def __call__(self, answer, problem): return answer == problem
def main():
    with VerifierPool(Mine(), workers=1, timeout=20.0) as pool:
        print(pool.run([("a", "a"), ("a", "b")]))
{start}
"""


@pytest.mark.parametrize(
    ("warm_up", "start", "printed"),
    [
        ("pass", "if __name__ == '__main__': main()", "[Outcome(score=1.0, failure=None"),
        ("pass", "main()", "if __name__ == '__main__':"),
        (
            "1 / 0",
            "if __name__ == '__main__': main()",
            "RuntimeError: a verifier process cannot work: ZeroDivisionError: division by zero",
        ),
    ],
)
def test_a_verifier_that_stands_in_the_script(tmp_path, warm_up, start, printed):
    command, environment = script(
        tmp_path, VERIFIER_OF_A_SCRIPT.format(warm_up=warm_up, start=start)
    )
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert printed in done.stdout + done.stderr


def is_alive(pid):
    """Whether it runs: a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid):
    return [int(pid) for pid in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@linux
@pytest.mark.parametrize("victim", ["trainer", "keeper"])
def test_what_is_killed_leaves_no_process(tmp_path, victim):
    """Not even one inside `9**9**9**9`, where Python runs no handler."""
    command, environment = script(
        tmp_path,
        """
        from r1train.rewards.pool.pool import VerifierPool
        from tests.r1train.misbehaving import Misbehaving
        with VerifierPool(Misbehaving(), workers=1, timeout=600.0) as pool:
            print(pool.workers[0].process.pid, flush=True)
            pool.run([("9**9**9**9", "evaluated")])
        """,
    )
    trainer = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        keeper = int(trainer.stdout.readline())
        wait_until(lambda: children(keeper))
        [child] = children(keeper)
        limited = re.compile(r"Max cpu time +601 +601 +seconds")  # where nobody is left to kill it
        wait_until(lambda: limited.search(Path(f"/proc/{child}/limits").read_text()))
        os.kill(trainer.pid if victim == "trainer" else keeper, signal.SIGKILL)
        wait_until(lambda: not is_alive(child) and not is_alive(keeper))
    finally:
        trainer.kill()
        trainer.communicate()


def test_a_process_that_ends_with_something_unread_has_ended():
    ours, theirs = socket.socketpair()
    with ours:
        ours.send(b"unread")
        theirs.close()
        with pytest.raises(EOFError):
            list(FrameReader(ours.fileno()).frames())
