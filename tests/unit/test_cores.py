"""Cores: equal shares for all that compute, and long work that lets a conversation go first, but not for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from lollms_local.cores import CORES, PATIENCE_S, Batch, Cores
from lollms_local.errors import Cancelled
from lollms_local.modalities.base import Control
from tests.virtual_device import VirtualDevice, VirtualModel


@pytest.fixture
def other() -> Iterator[ThreadPoolExecutor]:
    """Another thread of the process, always the same one."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


def test_every_thread_that_computes_has_an_equal_share_and_never_less_than_one(other: ThreadPoolExecutor) -> None:
    cores = Cores()
    assert cores.share(8) == 8
    mine = cores.begin()
    nested = cores.begin()
    assert cores.share(8) == 8, "a thread with two models does one thing at a time"
    its = other.submit(cores.begin).result()
    assert [cores.share(count) for count in (8, 3, 1)] == [4, 1, 1]
    cores.end(its)
    cores.end(nested)
    cores.end(mine)
    assert cores.share(8) == 8


def test_a_batch_job_waits_between_steps_until_the_conversation_is_over(other: ThreadPoolExecutor) -> None:
    cores, shares = Cores(), []
    talk = other.submit(cores.begin).result()
    cores.begin()
    checks = 0

    def check() -> None:
        nonlocal checks
        checks += 1
        shares.append(cores.share(8))
        if checks == 3:
            other.submit(cores.end, talk).result()

    with cores.batch() as batch:
        batch.give_way(check)
    assert shares == [8, 8, 8], "while it waits the conversation has all cores"
    assert cores.share(8) == 8


def test_it_waits_no_longer_than_it_has_computed_and_a_little_more(other: ThreadPoolExecutor) -> None:
    now = 0.0
    cores = Cores(lambda: now)
    other.submit(cores.begin).result()
    cores.begin()

    def a_second_passes() -> None:
        nonlocal now
        now += 1.0

    def waited(batch: Batch) -> float:
        before = now
        batch.give_way(a_second_passes)
        return now - before

    with cores.batch() as batch:
        assert waited(batch) == pytest.approx(PATIENCE_S, abs=1)
        now += 20.0
        assert waited(batch) == pytest.approx(20.0, abs=1)
        assert waited(batch) == pytest.approx(0.0, abs=1)


def test_batch_jobs_do_not_wait_for_one_another_nor_those_on_a_card_for_anyone(other: ThreadPoolExecutor) -> None:
    cores = Cores()

    def never() -> None:
        raise AssertionError("it waited")

    with cores.batch() as batch:
        talk = other.submit(cores.begin).result()
        batch.give_way(never)  # this thread has no model on the CPU
        cores.begin()
        with pytest.raises(AssertionError, match="it waited"):
            batch.give_way(never)
        other.submit(cores.end, talk).result()
        between = other.submit(_batch_job, cores)
        batch.give_way(never)
        between.result()


def _batch_job(cores: Cores) -> None:
    with cores.batch():
        cores.end(cores.begin())


def test_a_job_that_waits_can_be_stopped_and_leaves_no_trace(other: ThreadPoolExecutor) -> None:
    stop = threading.Event()
    talk = other.submit(CORES.begin).result()
    mine = CORES.begin()
    try:
        with (
            pytest.raises(Cancelled),
            Control(cancelled=stop.is_set, on_progress=lambda _: stop.set()).behind_conversations() as control,
        ):
            control.report(1, 2, "step")
        assert CORES.share(8) == 4
    finally:
        CORES.end(talk)
        CORES.end(mine)
    assert CORES.share(8) == 8


@pytest.mark.parametrize(("claims", "share"), [({"ram": 10}, 4), ({"gpu": 10}, 8), ({"gpu": 10, "ram": 10}, 8)])
def test_a_lease_counts_as_computing_while_it_lasts_if_the_model_is_in_ram(
    claims: dict[str, int], share: int, other: ThreadPoolExecutor
) -> None:
    device = VirtualDevice(ram=100, gpu=100)
    mine = CORES.begin()
    try:
        lease = device.manager().lease(
            "a", label="a", claims=lambda: claims, load=lambda: VirtualModel(device, "a", claims)
        )
        other.submit(lease.__enter__).result()
        assert CORES.share(8) == share
        other.submit(lease.__exit__, None, None, None).result()
        assert CORES.share(8) == 8
    finally:
        CORES.end(mine)
