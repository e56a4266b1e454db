"""What a run says at its end, however it ended: plots, summary, the table of before and after."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from r1train.config.schema import RunError
from r1train.report.console import CONSOLE, show_before_after
from r1train.report.evaluation import EvalResult
from r1train.report.reference import show_reference
from r1train.run.folder import RunFolder
from r1train.run.signals import Signals


def finish(
    folder: RunFolder,
    summary: dict[str, Any],
    evaluations: Sequence[EvalResult],
    signals: Signals,
    *,
    stopped_by: BaseException | None,
    save: Callable[[], Path | None],
    quiet: bool = False,
) -> dict[str, Any]:
    """Checkpoint (by `save`), plots, summary and, unless `quiet`, table; returns what summary.json
    holds.

    What fails of them keeps none of the others from being written, and the summary says so. Then
    the first failure is raised, or logged where the run ends by `stopped_by` anyway.
    """
    failures: list[BaseException] = []
    checkpoint: Path | None = None
    plots: list[Path] = []
    with collected(failures):
        checkpoint = save()
    with collected(failures):
        folder.join()
    with collected(failures):
        plots = folder.plot()
    summary |= {"checkpoint": str(checkpoint) if checkpoint else None, "interrupted": False}
    if not summary.get("reference", True):
        del summary["reference"]
    warnings = [*summary.pop("warnings"), *map(named, failures)]
    if warnings:
        summary["warnings"] = warnings
    ends = {"before": evaluations[0], "after": evaluations[-1]} if evaluations else {}
    if ends:
        summary["evaluation"] = {when: result.as_dict() for when, result in ends.items()}
        if evaluations[-1].verifiable:
            summary["pass@1"] = {when: result.pass_at_1 for when, result in ends.items()}
    with collected(failures):
        write_summary(folder, summary, [stopped_by, signals.waiting, *failures])
        if signals.waiting:  # it may have come while the summary was written
            write_summary(folder, summary, [stopped_by, signals.waiting, *failures])
    folder.close()
    with collected(failures):  # last: a terminal that has gone, or a closed pipe, costs nothing
        if ends and not quiet:
            show_before_after(ends["before"], ends["after"], plots)
            show_reference(summary.get("reference", {}))
        if not quiet:
            say_where(folder.path, summary)
    for failure in failures if stopped_by else failures[1:]:
        message = "%s is not complete: %s"
        logging.getLogger("r1train").error(message, folder.path, named(failure))
    if failures and stopped_by is None:
        raise failures[0]
    return summary


def write_summary(
    folder: RunFolder, summary: dict[str, Any], reasons: list[BaseException | None]
) -> None:
    """Writes `summary`, with the first of the `reasons` for which the run ended, if any."""
    reason = next((reason for reason in reasons if reason is not None), None)
    if reason is not None:
        summary |= stopped(reason)
    folder.write_summary(summary)


def stopped(reason: BaseException) -> dict[str, Any]:
    """What a summary says of how a run ended. A stage that failed, a RunError, is no interruption:
    `r1train run` tries it again."""
    return {"interrupted": not isinstance(reason, RunError), "stopped_by": named(reason)}


def say_where(folder: Path, summary: Mapping[str, Any]) -> None:
    """Where the summary is and, of a run that is not finished, how to go on."""
    interrupted = summary["interrupted"]
    CONSOLE.print(f"{'interrupted; ' * interrupted}{folder / 'summary.json'}", soft_wrap=True)
    if "stopped_by" in summary:
        what = "to go on" if interrupted else "to try again what failed"
        CONSOLE.print(f"{what}: r1train resume {folder}", soft_wrap=True)


@contextmanager
def collected(failures: list[BaseException]) -> Iterator[None]:
    """Within it an exception is appended to `failures` and goes no further."""
    try:
        yield
    except BaseException as error:
        failures.append(error)


def named(error: BaseException) -> str:
    """Type and message of an exception."""
    return f"{type(error).__name__}: {error}".rstrip(": ")
