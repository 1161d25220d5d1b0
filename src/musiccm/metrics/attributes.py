"""Does a clip have the instrument, drums, texture and tempo that were asked for, by a tagger?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.metrics.clips import ClipMetric, require_rows
from musiccm.metrics.readings import Reading


class AttributeAccuracy(ClipMetric):
    """Accuracy, group by group, of a tagger's choice against the tags that were asked for.

    A group is a set of tags of which the tagger picks the likeliest. The pick is right when it is among the tags asked
    for; clips that ask for no tag of a group do not count in it. Where a group is a `Reading`, its columns hold what
    was read and what was asked for as numbers, and it says itself what is right; it has no chance beside it.
    """

    higher_is_better = True

    def __init__(self, groups: Mapping[str, Sequence[int] | Reading], **kwargs: Any) -> None:
        """Take the groups.

        Args:
            groups: Name of each group and the tag columns it covers, or how they are compared.
            **kwargs: Passed to `torchmetrics.Metric`.

        Raises:
            MusiccmError: A group without columns.
        """
        super().__init__(**kwargs)
        self.readings = {name: group for name, group in groups.items() if isinstance(group, Reading)}
        self.groups = {name: list(group.columns if isinstance(group, Reading) else group)
                       for name, group in groups.items()}
        empty = [name for name, columns in self.groups.items() if not columns]
        if empty:
            raise MusiccmError(f"attribute accuracy: expected tag columns in each group, found none in {empty}")
        self.add_ids("ids")
        self.add_rows("right", 2, torch.bool)
        self.add_rows("wanted", 2, torch.bool)

    def update(self, logits: Tensor, tags: Tensor, ids: Sequence[str]) -> None:
        """Add generated clips.

        Args:
            logits: The tagger's logits, `[B, G]`.
            tags: Tags asked for, 0 or 1, `[B, G]`.
            ids: Clip ids, `B` of them.

        Raises:
            MusiccmError: Logits and tags of different shapes.
        """
        require_rows("tagger logits", logits, ids)
        if logits.shape != tags.shape:
            raise MusiccmError(
                f"attribute accuracy: expected tags of the logits' shape {list(logits.shape)}, found {list(tags.shape)}"
            )
        keep = self.take_new("ids", ids)
        logits, asked = logits.detach()[keep], tags.to(logits.device)[keep]
        wanted = asked > 0.5
        right = []
        for name, columns in self.groups.items():
            if name in self.readings:
                agrees, stated = self.readings[name].compare(logits, asked)
                right.append(agrees & stated)
                wanted[:, columns] = False
                wanted[:, columns[0]] = stated
                continue
            choice = logits[:, columns].argmax(dim=1, keepdim=True)
            right.append(wanted[:, columns].gather(1, choice)[:, 0])
        self.right.append(torch.stack(right, dim=1).to(self.device))
        self.wanted.append(wanted.to(self.device))

    def compute(self) -> dict[str, float | int | None]:
        """The accuracies.

        Returns:
            `acc_<group>` over the clips that ask for the group (None where no clip does), `acc_<group>_chance`, what
            always naming the commonest tag of those clips would come to (None for a `Reading`), and `n` clips.

        Raises:
            MusiccmError: No clip.
        """
        ids, where = self.unique("ids")
        if not ids:
            raise MusiccmError("attribute accuracy: expected clips, found none")
        right, wanted = self.joined("right")[where], self.joined("wanted")[where]
        result: dict[str, float | int | None] = {"n": len(ids)}
        for column, (name, columns) in enumerate(self.groups.items()):
            asked = wanted[:, columns]
            count = int(asked.any(dim=1).sum())
            result[f"acc_{name}"] = int(right[:, column].sum()) / count if count else None
            chance = int(asked.sum(dim=0).max()) / count if count and name not in self.readings else None
            result[f"acc_{name}_chance"] = chance
        return result
