"""Names for the numbers of a candidate.

A candidate is a mapping from such a name to a number. The plain name of a model is its weight
everywhere; other knobs say more:

    maths                        the weight of maths, in all tensors
    maths [layers 0-1]           … in a group of tensors
    density of maths             another parameter of the merge method, for one model
    lambda of *                  … for the whole merge
    place 5 of maths [layer 3]   layer 3 of maths is the sixth of the new model, with this scale
"""

import re
from dataclasses import dataclass

WEIGHT = "weight"
EVERY_MODEL = "*"
_SPELLED = re.compile(r"(?:(?P<parameter>[\w ]+?) of )?(?P<model>.+?)(?: \[(?P<group>[^\[\]]+)\])?")


@dataclass(frozen=True, order=True)
class Knob:
    """One number of a candidate.

    Attributes:
        model: whose it is; `EVERY_MODEL` where it is the merge's.
        group: the label of the tensors that it holds for; "" for all.
        parameter: of the merge method, or `place N` for a layer.
    """

    model: str
    group: str = ""
    parameter: str = WEIGHT

    def __str__(self) -> str:
        """Its name.

        >>> str(Knob("maths", "layers 0-1")), str(Knob("maths", parameter="density"))
        ('maths [layers 0-1]', 'density of maths')
        """
        whose = f"{self.model} [{self.group}]" if self.group else self.model
        return whose if self.parameter == WEIGHT else f"{self.parameter} of {whose}"

    @classmethod
    def parse(cls, name: str) -> "Knob":
        """What a name means.

        >>> Knob.parse("place 5 of maths [layer 3]")
        Knob(model='maths', group='layer 3', parameter='place 5')
        """
        found = _SPELLED.fullmatch(name)
        if found is None:
            raise ValueError(f"{name!r} names no number of a candidate")
        return cls(found["model"], found["group"] or "", found["parameter"] or WEIGHT)


def is_plain(name: str) -> bool:
    """Whether a name can be a model's: it would not be read as another knob."""
    return bool(name) and Knob.parse(name) == Knob(name)
