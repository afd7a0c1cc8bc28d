"""May this model be loaded now? The table of what is in memory, and the judgement. Nothing loads or frees here."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from .errors import InsufficientMemory, ModelBusy
from .eviction import Decision, Policy, Resident, plan_eviction
from .ledger import Ledger
from .memory import Pools, readable
from .residents import History, Slot, receipt
from .turns import Blocked, Request, Turns

__all__ = ["Admission", "Table"]


@dataclass(frozen=True)
class Admission:
    """The judgement on one load.

    Attributes:
        blocked: what is in the way; None = go on.
        victims: what must be evicted first.
        shortfall, rows, at: what the victims were chosen from, and when.
    """

    blocked: Blocked | None = None
    victims: tuple[Slot, ...] = ()
    shortfall: Mapping[str, int] = field(default_factory=dict)
    rows: tuple[Resident, ...] = ()
    at: float = 0.0


class Table:
    """What is in memory. Every method is called with the turns' lock held.

    Args:
        pools: what there is. turns: the queue. policy: see `eviction.score`. clock: seconds. ledger: earlier loads.
        park: whether weights that leave a card may wait in RAM.
    """

    def __init__(
        self, pools: Pools, turns: Turns, policy: Policy, clock: Callable[[], float], ledger: Ledger, park: bool
    ) -> None:
        self.pools, self.turns, self.policy, self.clock, self.ledger = pools, turns, policy, clock, ledger
        self.park = park
        self.closed = False
        self.slots: dict[Hashable, Slot] = {}
        self.history: dict[Hashable, History] = {}
        self.pinned: set[Hashable] = set()
        self.decisions: deque[Decision] = deque(maxlen=64)
        #: goes up with every lease that begins and whenever a model begins to leave or has left: two equal readings say
        #: that nothing of that happened in between
        self.events = 0
        self._latest: Hashable = None
        self._first_used: float | None = None

    def is_idle(self, slot: Slot) -> bool:
        """Whether it may be evicted."""
        return slot.state in ("ready", "parked") and not slot.users and slot.key not in self.pinned

    def parked(self, key: Hashable) -> Slot | None:
        """The model's row if its weights wait in RAM."""
        slot = self.slots.get(key)
        return slot if slot is not None and slot.state == "parked" else None

    def may_park(self, slot: Slot, reserve: int = 0) -> bool:
        """Whether its weights could wait in RAM: there is room for them as things are, and for `reserve` besides."""
        count = slot.parked_bytes() if self.park else 0
        return bool(count) and count + reserve <= self.available("ram")

    def ram_kept_for(self, request: Request) -> int:
        """RAM that a request needs or wishes for itself, or that those before it were promised."""
        return max((request.needs or {}).get("ram", 0), request.wish.get("ram", 0)) + self._promised(request, "ram")

    def charged(self, pool: str) -> int:
        """Bytes that all residents are charged for."""
        return sum(slot.charged.get(pool, 0) for slot in self.slots.values())

    def available(self, pool: str, *, strict: bool = True) -> int:
        """Bytes that can be had without an eviction."""
        return self.pools.available(pool, [s.charge(pool) for s in self.slots.values()], strict=strict)

    def room(self, pool: str, *, in_time: bool = False) -> int:
        """Bytes that can be had when everything idle has left, or `in_time` also what is in use now."""
        leaving = (
            slot
            for slot in self.slots.values()
            if self.is_idle(slot) or slot.is_leaving or (in_time and slot.key not in self.pinned)
        )
        return max(0, self.available(pool) + sum(s.charged.get(pool, 0) for s in leaving))

    def overdrawn(self, pools: Mapping[str, int]) -> dict[str, int]:
        """Bytes by which the charges exceed the budget, for those pools where they do."""
        over = {pool: self.charged(pool) - self.pools.budget(pool) for pool in pools}
        return {pool: count for pool, count in over.items() if count > 0}

    def relief(self, over: Mapping[str, int]) -> list[Slot]:
        """What to evict so that the charges fit the budget again; everything idle there if even that is not enough."""
        plan = plan_eviction(self.rows(), over, self.clock(), self.policy)
        if plan is not None:
            return [self.slots[row.key] for row in plan]
        return [s for s in self.slots.values() if self.is_idle(s) and over.keys() & s.charged.keys()]

    def make_way(self, extra: Mapping[str, int]) -> Admission:
        """What may be evicted so that a model in use can take so much more; nothing if it cannot be enough."""
        missing = {pool: count - self._coming(pool) for pool, count in self.short(extra).items()}
        short = {pool: count for pool, count in missing.items() if count > 0}
        rows, now = tuple(self.rows()), self.clock()
        plan = plan_eviction(rows, short, now, self.policy) or []
        return Admission(None, tuple(self.slots[row.key] for row in plan), short, rows, now)

    def short(self, needs: Mapping[str, int]) -> dict[str, int]:
        """Bytes that are missing as things are, for those pools where some are."""
        missing = {pool: count - self.available(pool) for pool, count in needs.items()}
        return {pool: count for pool, count in missing.items() if count > 0}

    def trim(self, short: Mapping[str, int]) -> dict[str, int]:
        """Have idle models give up what they can work without, if that alone makes enough room; bytes by label.

        They may not take it again while they are loaded, so they are charged for less from then on. It takes no time,
        so it is done with the lock held: nobody can come to use such a model meanwhile.
        """
        idle = sorted((s for s in self.slots.values() if self.is_idle(s)), key=lambda s: s.last_used)
        spare = {slot.key: slot.spare() for slot in idle}
        chosen: list[Slot] = []
        missing = dict(short)
        for slot in idle:
            if any(missing[pool] > 0 and spare[slot.key].get(pool) for pool in missing):
                chosen.append(slot)
                missing = {pool: count - spare[slot.key].get(pool, 0) for pool, count in missing.items()}
        if not chosen or any(count > 0 for count in missing.values()):
            return {}
        for slot in chosen:
            slot.model.trim()
            for pool, count in spare[slot.key].items():
                slot.charged[pool] = max(0, slot.charged.get(pool, 0) - count)
        return {slot.label: sum(spare[slot.key].values()) for slot in chosen}

    def rows(self) -> list[Resident]:
        """What could be chosen from."""
        present = [s for s in self.slots.values() if s.state in ("ready", "parked")]
        return [s.resident(s.key in self.pinned, may_park=self.may_park(s)) for s in present]

    # --- changes ----------------------------------------------------------------------------------------------

    def insert(self, request: Request) -> Slot:
        """A row for a model about to be loaded, or to return from RAM, leased to the request that wants it."""
        parked = self.parked(request.key)
        if parked is not None:
            parked.start_return()
            self.take(parked, request)
            return parked
        now = self.clock()
        if self._first_used is None:
            self._first_used = now
        slot = Slot(
            request.key, request.label, request.terms,
            claims=request.predicted or {}, charged=dict(request.needs or {}),
            history=self.history.setdefault(request.key, History(now - self._first_used)), loaded_at=now, last_used=now,
            learned=request.learned,
        )  # fmt: skip
        self.take(slot, request)
        self.slots[request.key] = slot
        return slot

    def take(self, slot: Slot, request: Request) -> None:
        """Count a lease in."""
        self.events += 1
        slot.take(request, self.clock(), after_another=self._latest != slot.key)
        self._latest = slot.key

    def enter(self, slot: Slot, took_s: float, measured: Mapping[str, int], held: Mapping[str, int]) -> None:
        """Its model is there: charge it for what it was seen to take, if that is more than planned."""
        if slot.home_charges:
            slot.end_return()
            slot.history.return_s = took_s
        else:
            slot.load_s, slot.held = took_s, dict(held)
        slot.state, slot.measured = "ready", dict(measured)
        slot.loaded_at = slot.last_used = self.clock()
        for pool, count in measured.items():
            slot.charged[pool] = max(slot.charged.get(pool, 0), count)

    def remove(self, slots: Iterable[Slot]) -> None:
        """Forget rows."""
        self.events += 1
        for slot in slots:
            if self.slots.get(slot.key) is slot:
                del self.slots[slot.key]

    # --- the judgement ----------------------------------------------------------------------------------------

    def admit(self, request: Request, *, strict: bool = True) -> Admission:
        """What is in the way of a load, or what must be evicted first.

        Args:
            strict: False right after an eviction, see `Pools.available`.

        Raises:
            InsufficientMemory: there can be no room, or only if what is pinned or this thread itself holds were gone.
        """
        shortfall, reserved = self._shortfall(request, strict)
        wished = self._wished(request, shortfall, strict)
        if not any(wished.values()):
            return Admission(self.turns.may_load(request))
        if any(shortfall.values()) and all(count <= self._coming(pool) for pool, count in shortfall.items()):
            return Admission(Blocked("load"))  # it is enough to wait for those that are leaving already
        ahead = [why for other, why in self.turns.ahead(request) if other.owner is request.owner]
        drained = {key for why in ahead for key in why.drain}
        now = self.clock()
        rows = tuple(self._returning(row, request, now) for row in self.rows() if row.key not in drained)
        for short in (wished, shortfall):  # what would be good to have, if that much can leave; else what must be
            plan = plan_eviction(rows, short, now, self.policy)
            if plan is not None:
                victims = tuple(self.slots[row.key] for row in plan)
                return Admission(self.turns.may_load(request), victims, short if victims else {}, rows, now)
        if any(slot.is_leaving for slot in self.slots.values()):
            return Admission(Blocked("load"))
        mine = {s.key for s in self.slots.values() if request.caller in s.users}
        later = [row if row.key in mine else replace(row, leases=0) for row in rows]
        plan = plan_eviction(later, shortfall, now, self.policy)
        if plan is not None:
            return Admission(Blocked("room", frozenset(row.key for row in plan)))
        if reserved or drained:
            return Admission(Blocked("room"))
        self.decisions.append(Decision(request.label, now, self.policy, shortfall, rows, None))
        raise self.insufficient(request, "What is pinned, or held by the thread that asks, cannot leave.")

    @staticmethod
    def _returning(row: Resident, request: Request, now: float) -> Resident:
        """The row of the parked model that is wanted itself leaves last: without its copy it must be loaded anew."""
        if row.key != request.key:
            return row
        return replace(row, load_s=math.inf, last_used=now, pinned=False)

    def _shortfall(self, request: Request, strict: bool) -> tuple[dict[str, int], bool]:
        """Missing bytes per pool, and whether earlier requests have a part in it."""
        shortfall, reserved = {}, False
        for pool, count in (request.needs or {}).items():
            available = self.available(pool, strict=strict)
            if count > available + self.charged(pool):
                raise self.insufficient(request, "It would not fit with every other model gone.")
            promised = self._promised(request, pool)
            reserved = reserved or promised > 0
            shortfall[pool] = max(0, count - (available - promised))
        return shortfall, reserved

    def _coming(self, pool: str) -> int:
        """Bytes that models which are leaving now will free."""
        leaving = (slot for slot in self.slots.values() if slot.is_leaving)
        return sum(
            slot.home_charges.get(pool, 0) if slot.home_charges else slot.charged.get(pool, 0) for slot in leaving
        )

    def _wished(self, request: Request, shortfall: Mapping[str, int], strict: bool) -> dict[str, int]:
        """The same, where work of this shape took more before, with that."""
        short = dict(shortfall)
        for pool, count in request.wish.items():
            room = self.available(pool, strict=strict) - self._promised(request, pool)
            short[pool] = max(short.get(pool, 0), count - room)
        return short

    def _promised(self, request: Request, pool: str) -> int:
        """Bytes that earlier requests wait for, beyond what they will get from the models they wait to see evicted."""
        promised = 0
        for other, why in self.turns.ahead(request):
            if other.owner is request.owner and why.reason == "room" and other.needs:
                coming = sum(self.slots[key].charged.get(pool, 0) for key in why.drain if key in self.slots)
                promised += max(0, other.needs.get(pool, 0) - coming)
        return promised

    # --- refusals ---------------------------------------------------------------------------------------------

    def receipt(self, label: str, needs: Mapping[str, int]) -> str:
        """Who holds what."""
        return receipt(label, needs, self.pools, self.slots.values(), self.pinned)

    def would_fit(self, pools: Mapping[str, int]) -> str:
        """A way out that works: what could be loaded now."""
        fits = " and ".join(f"{readable(self.room(pool))} of {pool}" for pool in pools)
        limited = [pool for pool in pools if pool in (self.pools.budgets or {})]
        more = f", or raise the budget of {' and '.join(limited)}" if limited else ""
        return f"Up to {fits} can be had now: choose a smaller model, context or number format{more}."

    def insufficient(self, request: Request, why: str) -> InsufficientMemory:
        needs = request.needs or {}
        hint = request.way_out() or self.would_fit(needs)
        return InsufficientMemory(f"{self.receipt(request.label, needs)} {why}", hint=hint)

    def busy(self, request: Request, blocked: Blocked) -> ModelBusy:
        """The refusal for a request that may not, or no longer, wait."""
        slot = self.slots.get(request.key)
        if blocked.reason == "turn" and slot is not None:
            by = ", ".join(sorted(h for h in slot.holders if h))
            what = f"{request.label} is in use{f' by {by}' if by else ''}."
        elif blocked.reason == "room":
            what = self.receipt(request.label, request.needs or slot.charged if slot else request.needs or {})
        elif blocked.reason == "torch":
            what = f"{request.label} cannot be loaded while another torch model is at work."
        else:
            what = f"{request.label} must wait for another model that draws from the same random generator."
        if request.nested:
            return ModelBusy(
                f"{what} This thread holds a model already, so it does not wait: two such could block each other.",
                hint="Finish with the first model before using the second, or try again when the other job is done.",
            )
        return ModelBusy(
            f"{what} It was not free within {request.wait_s:g} s.", hint="Try again when that job is done."
        )
