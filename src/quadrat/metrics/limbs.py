"""Which joints make which part of a body, by their names as `Schema.joint` knows them."""

from __future__ import annotations

from typing import NamedTuple

from quadrat.structures import Schema, joint_words

SIDES = ("left", "right")

ARMS_AND_LEGS = {
    "upper arm": ("shoulder", "elbow"),
    "lower arm": ("elbow", "wrist"),
    "upper leg": ("hip", "knee"),
    "lower leg": ("knee", "ankle"),
}
"""The limbs of DeepPose's table: each once on the left and once on the right."""

TRUNK = {"torso": (("neck",), ("left hip", "right hip")), "head": (("neck",), ("head top",))}
"""The other sticks of a figure; an end between two joints lies in their middle."""

TORSO = ("left shoulder", "right hip")
HEAD = ("neck", "head top")


class Limb(NamedTuple):
    """A stick between two places, each the middle of one joint or more; limbs of one kind are counted together."""

    kind: str
    start: tuple[int, ...]
    end: tuple[int, ...]


def joint_kind(name: str) -> str:
    """`left_ankle` and `R-Ankle` -> ankle."""
    return " ".join(word for word in joint_words(name) if word not in SIDES)


def joint_kinds(schema: Schema) -> dict[str, list[int]]:
    """The numbers of the joints of each kind, left and right together."""
    kinds: dict[str, list[int]] = {}
    for number, name in enumerate(schema.joints):
        kinds.setdefault(joint_kind(name), []).append(number)
    return kinds


def pair(schema: Schema, names: tuple[str, str]) -> tuple[int, int] | None:
    """The numbers of two joints; None unless the schema has both."""
    first, second = (schema.joint(name) for name in names)
    return None if first is None or second is None else (first, second)


def limbs(schema: Schema) -> list[Limb]:
    """The parts of a human body that the joints' names give; else, as for animals, the schema's own limbs."""
    return _human(schema) or [
        Limb(f"{schema.joints[start]} - {schema.joints[end]}", (start,), (end,)) for start, end in schema.limbs
    ]


def _human(schema: Schema) -> list[Limb]:
    ends = [
        (kind, (f"{side} {first}",), (f"{side} {second}",))
        for kind, (first, second) in ARMS_AND_LEGS.items()
        for side in SIDES
    ]
    ends += [(kind, first, second) for kind, (first, second) in TRUNK.items()]
    found = [Limb(kind, _numbers(schema, first), _numbers(schema, second)) for kind, first, second in ends]
    return [limb for limb in found if limb.start and limb.end]


def _numbers(schema: Schema, names: tuple[str, ...]) -> tuple[int, ...]:
    """The numbers of all these joints, or none."""
    numbers = [schema.joint(name) for name in names]
    known = tuple(number for number in numbers if number is not None)
    return known if len(known) == len(names) else ()
