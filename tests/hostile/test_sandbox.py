"""The child process: what comes back, what does not, and what happens when it dies."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time

import ml_dtypes
import numpy as np
import pytest

from converter import errors
from converter.core.context import Limits
from converter.execution import codec, sandbox

LIMITS = Limits(seconds=20, memory_bytes=1 << 30)


def _identity(value):
    return value


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -(1 << 80),
        1.5,
        float("inf"),
        "text \x00 \u2028 \udcff",
        b"\x00\xff",
        [1, [2, (3, {"a": None, 4: b"x"})]],
        {},
        (),
    ],
)
def test_plain_values_come_back(value):
    assert sandbox.call(_identity, value, limits=LIMITS) == value


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.array(5, np.int64),
        np.zeros((0, 3), np.float16),
        np.array([True, False]),
        np.array([1 + 2j]),
        np.arange(4).astype(">i4"),
        np.arange(12).reshape(3, 4).T,
        np.array(["a", "ünï"]),
        np.array([], "<U0"),
        np.array([1.5, -2], ml_dtypes.bfloat16),
        np.array([1, -2], ml_dtypes.int4),
        np.array([1, 2], ml_dtypes.float8_e4m3fn),
    ],
    ids=str,
)
def test_arrays_come_back_with_type_and_shape(array):
    back = sandbox.call(_identity, {"a": array}, limits=LIMITS)["a"]
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


def test_arrays_of_text_objects_and_scalars_come_back():
    objects = np.array([["a", b"b"], ["", "c"]], object)
    back = sandbox.call(_identity, [objects, np.float32(0.5)], limits=LIMITS)
    assert back[0].dtype == object
    assert (back[0] == objects).all()
    assert type(back[1]) is np.float32


def test_arguments_are_not_copied_and_changes_stay_in_the_child():
    array = np.zeros(1000)

    def change():
        array[:] = 1
        return float(array.sum())

    assert sandbox.call(change, limits=LIMITS) == 1000
    assert array.sum() == 0


def test_what_is_no_data_cannot_come_back():
    with pytest.raises(errors.ModelError, match="cannot be sent between processes"):
        sandbox.call(object, limits=LIMITS)


@pytest.mark.parametrize(
    "message",
    [
        b"[]",
        b'["array"]',
        b'["array", "O", [1], 0]',
        b'["array", "<f4", [-1], 0]',
        b'["array", "<f4", [3], 0]',
        b'["array", "<f4", [2], 7]',
        b'["eval", "1"]',
        b"not json",
        b"[" * 100_000,
    ],
)
def test_a_message_that_is_none_is_refused(message):
    with pytest.raises(ValueError):  # noqa: PT011 - the texts differ
        codec.decode(message, [b"\0" * 8])


def test_our_errors_keep_class_and_fields():
    def fail():
        raise errors.PostconditionError("it broke", pass_name="p", node="n", hint="do", allowed="a")

    with pytest.raises(errors.PostconditionError) as caught:
        sandbox.call(fail, limits=LIMITS)
    error = caught.value
    assert (error.what, error.pass_name, error.node) == ("it broke", "p", "n")
    assert error.where == "pass p, node n"
    assert "do" in str(error)


def test_an_error_of_another_package_becomes_its_base_class():
    class PluginError(errors.DataError):
        pass

    def fail():
        raise PluginError("odd", where="here")

    with pytest.raises(errors.DataError) as caught:
        sandbox.call(fail, limits=LIMITS)
    assert type(caught.value) is errors.DataError


def test_foreign_errors_name_type_and_task():
    def fail():
        raise KeyError("zz")

    with pytest.raises(errors.ModelError, match="folding constants failed: KeyError: 'zz'"):
        sandbox.call(fail, limits=LIMITS, task="folding constants")


@pytest.mark.parametrize("name", ["SIGFPE", "SIGSEGV", "SIGABRT", "SIGILL", "SIGBUS"])
def test_a_crash_is_an_error(name):
    number = getattr(signal, name)

    def crash():
        os.kill(os.getpid(), number)
        time.sleep(5)

    with pytest.raises(errors.ModelError, match=f"crashed \\({name}\\) while running the model"):
        sandbox.call(crash, limits=LIMITS)


def test_an_early_exit_is_an_error():
    with pytest.raises(errors.ModelError, match="ended without a result"):
        sandbox.call(os._exit, 7, limits=LIMITS)


def test_a_hang_is_ended():
    started = time.monotonic()
    with pytest.raises(errors.LimitExceededError, match="took too long"):
        sandbox.call(time.sleep, 60, limits=Limits(seconds=0.3))
    assert time.monotonic() - started < 5


def test_a_child_that_ignores_signals_is_ended_with_its_children():
    read, write = os.pipe()

    def stubborn():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        pid = os.fork()
        if pid:
            os.write(write, str(pid).encode())
        while True:
            time.sleep(1)

    with pytest.raises(errors.LimitExceededError):
        sandbox.call(stubborn, limits=Limits(seconds=0.5))
    grandchild = int(os.read(read, 20))
    os.close(read)
    os.close(write)
    for _ in range(100):
        if not _alive(grandchild):
            return
        time.sleep(0.05)
    pytest.fail("the child of the child still runs")


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_grandchild_that_lives_on_delays_nothing():
    def leave_one():
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        os._exit(3)

    started = time.monotonic()
    with pytest.raises(errors.ModelError, match="ended without a result"):
        sandbox.call(leave_one, limits=LIMITS)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("size", [2 << 30, 1 << 45])
def test_too_much_memory_is_an_error(size):
    def take():
        return int(np.ones(size, np.uint8)[-1])

    with pytest.raises(errors.LimitExceededError, match="too much memory"):
        sandbox.call(take, limits=LIMITS)


def test_output_of_the_child_does_not_reach_the_terminal(capfd):
    def noisy():
        os.write(1, b"native output\n" * 10_000)
        os.write(2, b"\x1b[2J" * 10_000)
        print("from Python")
        print("more", file=sys.stderr)
        return sys.stdin.read()

    assert sandbox.call(noisy, limits=LIMITS) == ""
    out, err = capfd.readouterr()
    assert out == err == ""


def test_output_of_the_child_is_logged_escaped(caplog):
    def noisy():
        os.write(2, b"\x1b[31mred\n")

    with caplog.at_level("DEBUG", logger="converter.execution.sandbox"):
        sandbox.call(noisy, limits=LIMITS)
    shown = [r.getMessage() for r in caplog.records if "red" in r.getMessage()]
    assert shown
    assert "\x1b" not in shown[0]


def test_progress_arrives_in_order():
    seen: list[int] = []

    def work(count, progress):
        for index in range(count):
            progress(index)
        return "done"

    assert sandbox.call(work, 300, limits=LIMITS, on_progress=seen.append) == "done"
    assert seen == list(range(300))


def test_an_interrupt_ends_the_child():
    class Stop(Exception):
        pass

    pids: list[int] = []

    def work(progress):
        progress(os.getpid())
        time.sleep(60)

    def interrupt(value):
        pids.append(value)
        raise Stop

    with pytest.raises(Stop):
        sandbox.call(work, limits=LIMITS, on_progress=interrupt)
    assert not _alive(pids[0])


def test_cpu_time_of_children_is_accounted():
    def burn():
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass

    before = _children_seconds()
    sandbox.call(burn, limits=LIMITS)
    assert _children_seconds() - before > 0.15


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_no_descriptor_is_left_open():
    sandbox.call(_identity, 1, limits=LIMITS)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        sandbox.call(_identity, 1, limits=LIMITS)
        with pytest.raises(errors.ModelError):
            sandbox.call(os._exit, 1, limits=LIMITS)
    assert len(os.listdir("/proc/self/fd")) == before


def test_calls_work_while_threads_hold_locks():
    stop = threading.Event()
    lock = threading.Lock()

    def busy():
        while not stop.is_set():
            with lock:
                sys.stderr.flush()
                np.ones((64, 64)) @ np.ones((64, 64))

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for index in range(20):
            assert sandbox.call(_identity, index, limits=LIMITS) == index
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_calls_from_several_threads():
    results: dict[int, int] = {}

    def one(index):
        results[index] = sandbox.call(_identity, index, limits=LIMITS)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: i for i in range(8)}


def test_a_call_inside_a_call():
    def outer():
        return sandbox.call(_identity, [1], limits=LIMITS)

    assert sandbox.call(outer, limits=LIMITS) == [1]
