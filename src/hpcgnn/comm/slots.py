"""The message slots of a ring, which later exchanges reuse."""

from __future__ import annotations

import torch

from hpcgnn.comm.transport.host import Slot, Transport

OUTWARD = ("send", "reply-send")
INWARD = ("receive", "reply-receive")
_NOTHING = (torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.uint8))

Needs = dict[str, tuple[int, int]]  # by name: number of slots, bytes of each


class Slots:
    """Slots by purpose, at most `most` bytes together unless a single exchange needs more."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held: dict[str, list[Slot]] = {}

    def take(self, needs: Needs, transport: Transport) -> dict[str, list[Slot]]:
        """Return the slots of an exchange that is about to begin.

        Slots of earlier exchanges are dropped first if keeping them would exceed `most`.
        """
        transport.begin()
        outward = sum(sum(self._grown(name, *needs[name])) for name in OUTWARD)
        inward = sum(sum(self._grown(name, *needs[name])) for name in INWARD)
        if max(outward, transport.reserved) + inward > self.most:
            self.held.clear()
        if transport.in_one_piece:
            self._cut_anew({name: needs[name] for name in OUTWARD}, transport)
        for name, (depth, size) in needs.items():
            held = self.held.setdefault(name, [])
            for i in range(depth):
                if i == len(held):
                    held.append(transport.slot(size, sends=name in OUTWARD))
                elif held[i].near.numel() < size:
                    held[i] = Slot(*_NOTHING)
                    held[i] = transport.slot(size, sends=name in OUTWARD)
        return {name: self.held[name][:depth] for name, (depth, _) in needs.items()}

    def num_bytes(self) -> int:
        return sum(slot.near.numel() for held in self.held.values() for slot in held)

    def _sizes(self, name: str) -> list[int]:
        return [slot.near.numel() for slot in self.held.get(name, [])]

    def _grown(self, name: str, depth: int, size: int) -> list[int]:
        """Return the bytes of each slot of a name once `depth` of them have at least `size`."""
        have = self._sizes(name)
        have += [0] * (depth - len(have))
        return [max(old, size if i < depth else 0) for i, old in enumerate(have)]

    def _cut_anew(self, needs: Needs, transport: Transport) -> None:
        """Replace all slots if one is missing or too small, by ones that fit earlier exchanges too.

        If those take above half of `most`, more than any exchange needs in one direction, the new
        slots fit this exchange only.
        """
        sizes = {name: self._grown(name, *need) for name, need in needs.items()}
        if all(sizes[name] == self._sizes(name) for name in needs):
            return
        if sum(map(sum, sizes.values())) > self.most // 2:
            sizes = {name: [size] * depth for name, (depth, size) in needs.items()}
        for name in needs:
            self.held.pop(name, None)
        transport.reserve([size for each in sizes.values() for size in each])
        for name, each in sizes.items():
            self.held[name] = [transport.slot(size, sends=True) for size in each]
