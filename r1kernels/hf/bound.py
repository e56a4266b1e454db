"""Methods of one instance, which a bound method cannot be where the instance is pickled."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


class Bound:
    """``function(owner, …)`` as an attribute of ``owner``; goes with it into copies and pickles.

    A ``MethodType`` would be pickled as the name of a method, and a class has one of that name
    already: the loaded model would silently run the class's own. ``function`` must be importable.
    """

    # Without a __dict__, since functools.wraps would copy that into whatever wraps this.
    __slots__ = ("function", "owner")

    def __init__(self, function: Callable[..., Any], owner: Any) -> None:
        self.function, self.owner = function, owner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.owner, *args, **kwargs)

    @property
    def __self__(self) -> Any:
        return self.owner

    @property
    def __signature__(self) -> inspect.Signature:
        parameters = [*inspect.signature(self.function).parameters.values()]
        return inspect.Signature(parameters[1:])
