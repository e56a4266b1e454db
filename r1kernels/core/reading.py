"""What is asked of arguments at every call, as a function without a loop, made once for types.

Nearly all that a call of an op or a launch of a kernel looks up hangs on facts of its arguments: of
tensors a dtype, a device, an address, of others the value. A loop that asks each of them what it
is takes twice as long as the asking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Reading = Callable[[Sequence[Any]], tuple[Any, ...]]


def reading(terms: Iterable[str], **names: Any) -> Reading:
    """The tuple of ``terms``, Python expressions of the sequence ``args`` and of ``names``."""
    function: Reading = eval(f"lambda args: ({''.join(f'{term}, ' for term in terms)})", names)
    return function
