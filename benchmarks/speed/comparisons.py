"""The algorithms whose steps are timed beside TD3+BC's, what GORL adds to all of them, and what learned losses cost."""

from __future__ import annotations

from dataclasses import dataclass

MODES = ("eager", "recorded", "compiled")


@dataclass(frozen=True)
class Comparison:
    """Variants of an algorithm in all modes, timed in the same rounds at the size of hopper.

    Attributes:
        label: of the algorithm.
        variants: names that `ours` knows, with what is added to the words of their rows.
        file: CORL's implementation, in its folder of offline algorithms; empty where it has none.
    """

    label: str
    variants: dict[str, str]
    file: str = ""

    @property
    def yardstick(self) -> str:
        """Whose speed is 1: CORL's, or the last variant's."""
        return "CORL" if self.file else [*self.variants.values()][-1]

    def against(self, name: str) -> str:
        """The contestant whose speed is 1 where `name` is one: the last variant runs in the same mode."""
        return "corl" if self.file else contestant([*self.variants][-1], name.partition(", ")[2])

    def columns(self) -> dict[str, str]:
        """What is compared with the yardstick: labels by variant."""
        labels = {variant: ", ".join(filter(None, (self.label, words))) for variant, words in self.variants.items()}
        return labels if self.file else dict([*labels.items()][:-1])

    def names(self) -> list[str]:
        """All that may take part, in the order of their rows."""
        return [contestant(variant, mode) for variant in self.variants for mode in MODES] + ["corl"] * bool(self.file)


COMPARISONS = {
    "iql": Comparison("IQL", {"iql_corl": "", "iql": "official order"}, "iql.py"),
    "cql": Comparison("CQL", {"cql": ""}, "cql.py"),
    "sac_bc": Comparison("SAC+BC", {"sac_bc": "", "td3_bc": "TD3+BC"}),
}


@dataclass(frozen=True)
class Base:
    """One that GORL guides.

    Attributes:
        label: for rows.
        period: gradient steps between guiding updates on locomotion data (GORL, Tables VI to IX).
        published: per cent that GORL adds to the time (GORL, Table III).
    """

    label: str
    period: int
    published: float


BASES = {
    "td3_bc": Base("TD3+BC", 500, 3.7),
    "sac_bc": Base("SAC+BC", 500, 1.7),
    "iql": Base("IQL", 200, 2.6),
    "cql": Base("CQL", 200, 1.3),
}
PUBLISHED_AVERAGE = 1.9


@dataclass(frozen=True)
class Learned:
    """Losses beside an algorithm's own, timed in the same rounds at the size of halfcheetah.

    Attributes:
        label: of the algorithm.
        variants: names that `ours` knows, with the words of their rows.
        against: the variant whose time in the same mode is 1.
        authors: whether the authors' code takes part, which has the algorithm.
    """

    label: str
    variants: dict[str, str]
    against: str
    authors: bool = False

    def names(self) -> list[str]:
        """All that may take part, in the order of their rows."""
        return [contestant(variant, mode) for variant in self.variants for mode in MODES] + [*AUTHORS] * self.authors

    def yardstick(self, name: str) -> str:
        """The contestant whose time is 1 where `name` is one."""
        return AUTHORS_IL if name in AUTHORS else contestant(self.against, name.partition(", ")[2])


AUTHORS_IL = "gild-il"
AUTHORS = {AUTHORS_IL: "RL+IL, of the authors' parts", "gild": "GILD, the authors'"}
LEARNED = {
    "gild_td3": Learned(
        "TD3",
        {"td3": "alone", "td3+rl_il": "RL+IL", "td3+gild": "GILD", "td3+meta_critic": "Meta-Critic"},
        "td3+rl_il",
        authors=True,
    ),
    "gild_ddpg": Learned("DDPG", {"ddpg+rl_il": "RL+IL", "ddpg+gild": "GILD"}, "ddpg+rl_il"),
    "gild_sac": Learned("SAC", {"sac+rl_il": "RL+IL", "sac+gild": "GILD"}, "sac+rl_il"),
}
WHOLE = {"whole_navigation": "metarl/SparseNavigation-v0", "whole_halfcheetah": "HalfCheetah-v5"}
"""Environments of whole runs by question."""


def contestant(variant: str, mode: str) -> str:
    """The name of metarl's contestant in a comparison."""
    return f"{variant}, {mode}"
