"""Calling a function in a child process that may crash, hang or ask for too much memory.

A model of 200 bytes can kill the process that runs it, so everything that hands a model to native
code goes through :func:`call`. The child is a fork: arguments need no copy and modules no import,
so a call costs milliseconds. (Import what the function needs, onnxruntime above all, before the
call; else every child imports it anew.) What the child sends back is data in the form of
:mod:`converter.execution.codec`, never a pickle, so a child that a model took over cannot make the
parent run anything.

The child has an address space limit, no core dumps, no terminal and its own process group; its
output goes to the log at debug level. It is killed when it takes too long, and when the parent dies
or is interrupted.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import logging
import math
import os
import resource
import select
import signal
import struct
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from converter import errors
from converter.core.context import Limits
from converter.errors import ConverterError, LimitExceededError, ModelError
from converter.execution import codec
from converter.execution.patience import Patience

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_HEADER = struct.Struct("<cQQ")
_LENGTH = struct.Struct("<Q")
_RESULT, _PROGRESS, _OURS, _FOREIGN, _MEMORY = b"R", b"P", b"E", b"X", b"M"
_DIED, _LATE = b"D", b"L"
_LOG_TAIL = 1 << 14
_PR_SET_PDEATHSIG = 1
_OUT_OF_MEMORY = (
    "bad_alloc",
    "bad allocation",
    "Failed to allocate memory",
    "Unable to allocate",
    "Cannot allocate memory",
)


def call(
    function: Callable[..., T],
    *args: Any,
    limits: Limits,
    on_progress: Callable[[Any], None] | None = None,
    task: str = "running the model",
    **kwargs: Any,
) -> T:
    """Call a function in a child process and return its result.

    Args:
        function: What to call. It sees everything as it is now, and changes nothing here. When
            ``on_progress`` is given it is called with one more keyword argument, ``progress``, a
            function that sends a small value to ``on_progress``.
        *args: Its arguments; never copied.
        limits: Bounds on the time of the call and on the memory of the child.
        on_progress: Called in this process with every value that the child reports.
        task: What the child does, for messages: "running the model".
        **kwargs: Its keyword arguments.

    Returns:
        The result, made of the types that :mod:`converter.execution.codec` knows.

    Raises:
        ConverterError: The function raised it; it comes back with the same class and fields.
        ModelError: The child crashed, or the function raised another exception.
        LimitExceededError: The child ran out of time or memory.
    """
    _LOG.debug("child process: %s", task)
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    result_in, result_out = os.pipe()
    log_in, log_out = os.pipe()
    with warnings.catch_warnings():
        # from Python 3.12 on fork warns when threads exist; the child below takes care
        warnings.simplefilter("ignore", DeprecationWarning)
        parent = os.getpid()
        pid = os.fork()
    if pid == 0:
        _child(
            function, args, kwargs, _Ends(result_out, log_out, parent, libc, limits, on_progress)
        )
    os.close(result_out)
    os.close(log_out)
    child = _Child(pid, result_in, log_in, limits, watched=on_progress is not None)
    try:
        kind, value = child.message()
        while kind == _PROGRESS:
            if on_progress is not None:
                on_progress(value)
            kind, value = child.message()
    except EOFError:
        kind, value = _DIED, None
        child.wait(patience=1.0)
    except TimeoutError:
        kind, value = _LATE, None
    except ValueError as error:
        kind, value = _FOREIGN, {"type": "broken reply", "text": str(error)}
    finally:
        child.close()
    if kind == _RESULT:
        result: T = value
        return result
    raise _error(kind, value, task, child)


@dataclass(frozen=True)
class _Ends:
    """What the child needs from its parent."""

    result: int
    log: int
    parent: int
    libc: Any
    limits: Limits
    on_progress: Callable[[Any], None] | None


def _child(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], ends: _Ends
) -> NoReturn:
    """Everything that happens in the child; it never returns into the parent's code.

    Locks that threads of the parent held stay locked for ever here, so nothing is logged or
    printed through objects of the parent.
    """
    status = 1
    try:
        _isolate(ends)
        if ends.on_progress is not None:
            kwargs["progress"] = lambda value: _send(ends.result, _PROGRESS, value)
        kind, value = _run(function, args, kwargs)
        try:
            _send(ends.result, kind, value)
        except (TypeError, ValueError) as error:
            _send(ends.result, _FOREIGN, {"type": "TypeError", "text": str(error)})
        status = 0
    except MemoryError:
        with contextlib.suppress(BaseException):
            _send(ends.result, _MEMORY, None)
    except BaseException:  # noqa: BLE001 - nothing may escape into the parent's stack
        status = 1
    finally:
        os._exit(status)


def _isolate(ends: _Ends) -> None:
    """Cut the child off from the terminal and bound what it may use."""
    os.setsid()
    if ends.libc is not None:
        ends.libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != ends.parent:
            os._exit(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    faulthandler.disable()
    gc.freeze()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(ends.log, 1)
    os.dup2(ends.log, 2)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _cap(resource.RLIMIT_AS, _address_space() + _memory(ends.limits))
    # a second bound on time, for a child whose parent was stopped
    _cap(resource.RLIMIT_CPU, math.ceil(ends.limits.seconds * (os.cpu_count() or 1)) + 5)


def _cap(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _memory(limits: Limits) -> int:
    """Return the bytes that a child may add: never more than the machine has."""
    try:
        return min(limits.memory_bytes, os.sysconf("SC_PHYS_PAGES") * resource.getpagesize())
    except (ValueError, OSError):
        return limits.memory_bytes


def _address_space() -> int:
    """Return the bytes of address space in use now."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - hot path
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 4 << 30


def _run(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[bytes, Any]:
    """Call the function and describe how it ended."""
    try:
        return _RESULT, function(*args, **kwargs)
    except ConverterError as error:
        fields = {k: v for k, v in error.__dict__.items() if isinstance(v, str)}
        return _OURS, {"types": [c.__name__ for c in type(error).__mro__], "fields": fields}
    except MemoryError:
        return _MEMORY, None
    except Exception as error:  # noqa: BLE001 - this is the border that every error crosses
        text = str(error)
        kind = _MEMORY if any(mark in text for mark in _OUT_OF_MEMORY) else _FOREIGN
        return kind, {"type": type(error).__name__, "text": text, "trace": _trace(error)}


def _trace(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error))[-_LOG_TAIL:]


def _send(descriptor: int, kind: bytes, value: Any) -> None:
    description, buffers = codec.encode(value)
    head = [_HEADER.pack(kind, len(description), len(buffers))]
    head.extend(_LENGTH.pack(len(buffer)) for buffer in buffers)
    parts: list[bytes | memoryview] = [b"".join(head), description, *buffers]
    for part in parts:
        view = memoryview(part)
        while view:
            view = view[os.write(descriptor, view) :]


class _Child:
    """The parent's side of a running child."""

    def __init__(self, pid: int, result: int, log: int, limits: Limits, *, watched: bool) -> None:
        self.pid = pid
        self.limits = limits
        self.status: int | None = None
        self.tail = bytearray()
        self._result = result
        self._log = log
        self._deadline = time.monotonic() + limits.seconds
        # without signs of progress there is nothing to be impatient about
        self._patience = Patience(pid, limits.patience if watched else math.inf)
        self._poll = select.poll()
        for descriptor in (result, log):
            os.set_blocking(descriptor, False)
            self._poll.register(descriptor, select.POLLIN)

    def message(self) -> tuple[bytes, Any]:
        """Return the next message as (kind, value).

        Raises:
            EOFError: The child died.
            TimeoutError: Time is over.
            ValueError: What came is no message, or larger than the child's memory.
        """
        kind, length, count = _HEADER.unpack(self._read(_HEADER.size))
        budget = self.limits.memory_bytes + _address_space()
        if length > budget or count > length:
            raise ValueError("a message of impossible size")
        sizes = struct.unpack(f"<{count}Q", self._read(_LENGTH.size * count))
        if sum(sizes) > budget:
            raise ValueError("a message of impossible size")
        description = self._read(length)
        self._patience.sign()
        return kind, codec.decode(description, [self._read(size) for size in sizes])

    def wait(self, *, patience: float) -> None:
        """Reap the child if it ends within ``patience`` seconds."""
        end = time.monotonic() + patience
        while not self._ended() and time.monotonic() < end:
            time.sleep(0.001)

    def close(self) -> None:
        """Kill the child with all that it started, reap it, and log the end of its output."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            _, self.status = os.waitpid(self.pid, 0)
        self._drain()
        os.close(self._result)
        os.close(self._log)
        if self.tail:
            _LOG.debug("output of the child process: %s", self.output())

    def output(self, length: int = 2000) -> str:
        """Return the end of what the child printed, escaped to one line."""
        shown = bytes(self.tail[-length:]).decode("utf-8", "backslashreplace")
        return shown.encode("unicode_escape").decode("ascii")

    def _read(self, size: int) -> bytearray:
        content = bytearray(size)
        view = memoryview(content)
        while view:
            self._await()
            with contextlib.suppress(BlockingIOError):
                count = os.readv(self._result, [view])
                if not count:
                    raise EOFError
                view = view[count:]
        return content

    def _await(self) -> None:
        """Return when the pipe of results may have something to read."""
        while True:
            left = min(self._deadline - time.monotonic(), self._patience.left())
            if left <= 0:
                raise TimeoutError
            ready = {descriptor for descriptor, _ in self._poll.poll(min(left, 0.25) * 1000)}
            if self._log in ready:
                self._drain()
            if self._result in ready:
                return
            # another child, forked at the same moment, may hold the pipe open: ask for the child
            if not ready and self._ended():
                self._finish()
                return

    def _finish(self) -> None:
        """The child is gone: what is in the pipe now is all that comes."""
        if not self._poll.poll(0):
            raise EOFError

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._log, 1 << 16):
                self.tail += part
                del self.tail[:-_LOG_TAIL]
            with contextlib.suppress(KeyError):
                self._poll.unregister(self._log)  # its end would wake the poll for ever

    def _ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status is not None


def _error(kind: bytes, value: Any, task: str, child: _Child) -> ConverterError:
    """Build the error that tells how the child ended."""
    if kind == _OURS:
        return _rebuilt(value)
    if kind == _LATE:
        allowed = f"{child.limits.seconds:.3g} seconds in all"
        if child.limits.patience < child.limits.seconds:
            allowed += f" and {child.limits.patience:.3g} seconds for one run"
        return LimitExceededError(
            f"{task} took too long",
            allowed=allowed,
            hint="set a longer --time-limit, or use a smaller model or fewer samples",
        )
    if kind == _MEMORY:
        return _memory_error(task, child)
    if kind == _DIED:
        return _death(task, child)
    detail = f"{value['type']}: {_shorten(value['text'])}"
    if trace := value.get("trace"):
        _LOG.debug("in the child process: %s", trace)
    return ModelError(f"{task} failed: {detail}")


def _memory_error(task: str, child: _Child) -> LimitExceededError:
    return LimitExceededError(
        f"{task} needs too much memory",
        allowed=f"{_memory(child.limits) >> 20} MiB",
        hint="check the shapes in the model; they may ask for more than the model needs",
    )


def _death(task: str, child: _Child) -> ModelError:
    status = child.status or 0
    if not os.WIFSIGNALED(status):
        return ModelError(f"the child process ended without a result while {task}")
    number = os.WTERMSIG(status)
    printed = child.tail.decode("utf-8", "replace")
    # nobody but the kernel kills the child before it is late, and that for lack of memory
    starved = number == signal.SIGABRT and any(mark in printed for mark in _OUT_OF_MEMORY)
    if starved or number == signal.SIGKILL:
        return _memory_error(task, child)
    if number == signal.SIGXCPU:
        return LimitExceededError(f"{task} took too long")
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return ModelError(
        f"onnxruntime crashed ({name}) while {task}",
        hint="the model is broken or hits a fault of onnxruntime; nothing was written",
    )


def _rebuilt(value: dict[str, Any]) -> ConverterError:
    """Make the child's error again: the same class where this project has it, and its texts."""
    kinds = (getattr(errors, name, None) for name in value["types"])
    kind = next(
        (each for each in kinds if isinstance(each, type) and issubclass(each, ConverterError)),
        ModelError,
    )
    error = kind.__new__(kind)
    fields = {"what": "", "where": "", "allowed": "", "hint": "", **value["fields"]}
    Exception.__init__(error, fields["what"])
    error.__dict__.update(fields)
    return error


def _shorten(text: str, length: int = 600) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= length else flat[:length] + "..."
