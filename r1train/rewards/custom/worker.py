"""The process that calls a user's function: it reads pickles of the trainer and answers in JSON.

The function is trusted, completions are not. So this is no sandbox, as verifiers have: the function
may read, write and ask other machines as it likes. But neither an endless loop, nor a crash, nor
more memory than there is can take the trainer along, and nothing that comes out of here is run.
"""

from __future__ import annotations

import json
import pickle
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from r1train.config.schema import ConfigError
from r1train.rewards.custom.function import FunctionFailed, UserFunction, load_function
from r1train.rewards.pool.limits import die_with, limit_memory

READY = b"ready"


def main() -> None:
    """Entry of the process: the function, a socket's descriptor, and the trainer's number."""
    spec, descriptor, trainer = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    die_with(trainer)
    channel = Connection(descriptor)
    with suppress(EOFError, ConnectionError):  # the trainer needs no more
        try:
            function = load_function(spec)
        except ConfigError as error:
            channel.send_bytes(str(error).encode("utf-8", "replace"))
            return
        limit_memory()
        channel.send_bytes(READY)
        while True:
            arguments = pickle.loads(channel.recv_bytes())
            channel.send_bytes(json.dumps(_reply(function, arguments)).encode())


def _reply(function: UserFunction, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"values": function(arguments)}
    except FunctionFailed as failure:
        return {"error": str(failure)}
    except BaseException as error:  # Ctrl-C is the trainer's: all of it is the function's own
        return {"error": str(function.failure(error))}
