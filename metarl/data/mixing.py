"""Several sources put together into one, each one's card kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from metarl.data.transitions import Card, Transitions, digest, summary
from metarl.errors import DataError


def concatenate(parts: Sequence[Transitions]) -> Transitions:
    """The episodes of every part, in order; the card holds each part's.

    Its returns are left empty where a part was drawn singly: a single reward is no return.

    Raises:
        DataError: the parts are of different shapes, environments or orders of joined observations.
    """
    first = parts[0].card
    for i, part in enumerate(parts[1:], start=1):
        for what, mine, other in (
            ("sizes (observation, action)", _sizes(part), _sizes(parts[0])),
            ("environment", part.card.env_id, first.env_id),
            ("order of joined observations", _joined(part.card), _joined(first)),
        ):
            if mine != other and mine and other:  # what a part does not say is taken to be the same
                raise DataError(
                    f"part {i} ({part.card.dataset_id!r}) has {what} {mine}, part 0 ({first.dataset_id!r}) {other}; "
                    "all must come from one environment."
                )
    rows = torch.cat([part.rows for part in parts])
    offsets = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
    pieces = [part.episode_starts[1:] + begin for part, begin in zip(parts, offsets[:-1], strict=True)]
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), *pieces])
    environment = next((part.card for part in parts if part.card.env_id is not None), first)
    card = Card(
        source="mix",
        dataset_id=" + ".join(part.card.dataset_id for part in parts),
        env_spec=environment.env_spec,
        env_id=environment.env_id,
        policy="a mixture",
        sha256=digest(rows, starts),
        figures={
            **({"flattened": list(_joined(first))} if _joined(first) else {}),
            "parts": [{"transitions": len(part), **part.card.to_dict()} for part in parts],
        },
    )
    mixed = Transitions(rows, parts[0].layout, starts, card)
    if all(part.card.returns for part in parts):
        card.returns.update(summary(mixed.returns()))
    return mixed


def _sizes(part: Transitions) -> tuple[int, int]:
    return part.layout.obs_dim, part.layout.action_dim


def _joined(card: Card) -> tuple[str, ...]:
    return tuple(card.figures.get("flattened", ()))
