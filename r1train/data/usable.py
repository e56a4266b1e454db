"""The rows of a file that can be used, and what is said of the others."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from r1train.config.schema import ConfigError
from r1train.config.task import OnBadRow
from r1train.data.sources.base import Row, RowError, Rows

T = TypeVar("T")


def usable(rows: Rows, parse: Callable[[Row], T], on_bad_row: OnBadRow) -> Iterator[tuple[int, T]]:
    """Number and `parse(row)` of every row for which it does not raise RowError.

    After the last of them ConfigError names all the others, or they are warned of, as `on_bad_row`
    says; it is an error in any case if no row can be used.
    """
    bad, reason, good = array("q"), "", 0
    for number, row in rows.scan():
        try:
            if isinstance(row, RowError):
                raise row
            parsed = parse(row)
        except RowError as error:
            reason = reason or str(error)
            bad.append(number)
        else:
            good += 1
            yield number, parsed
    if not good and not bad:
        raise ConfigError(f"{rows.path}: the file is empty, or all of it is blank")
    if bad and (on_bad_row == "error" or not good):
        first, others = rows.where(bad[:1]), rows.where(bad[1:])
        also = f" ({len(bad) - 1} more cannot be used either: {others})" * (len(bad) > 1)
        remedy = '; correct it, or set on_bad_row = "skip"' if good else ""
        raise ConfigError(f"{first}: {reason}{remedy}{also}")
    if bad:
        what = f"{len(bad)} of {good + len(bad)} rows are skipped; the first: {reason}"
        warn(rows, bad, what)


def check_rows(rows: Rows, parse: Callable[[Row], T], on_bad_row: OnBadRow) -> None:
    """Raises what `usable` would: where bad rows are skipped, it takes one that is good."""
    for _ in usable(rows, parse, on_bad_row):
        if on_bad_row == "skip":
            break


def warn(rows: Rows, numbers: Sequence[int], what: str) -> None:
    """Says something of some rows, if there are any."""
    if numbers:
        logging.getLogger("r1train").warning("%s: %s", rows.where(numbers), what)
