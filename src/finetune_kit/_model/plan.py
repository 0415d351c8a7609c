"""Blocks and what trains of them come in, the plan goes out: a value that prints as a table.

It knows neither specs nor models: all it says was counted before.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass

from finetune_kit._model.blocks import Block


@dataclass(frozen=True)
class FreezePlan:
    """What a spec means for one backbone: printed, a table; it changes nothing.

    Attributes:
        backbone: its name.
        level: of the blocks.
        batch_norm: what BatchNormalization does in the blocks that train.
        blocks: all of them, from the input to the output.
        trainable: for each block, whether it trains.
        block_trainable_params: for each block, how many of its parameters move by gradient.
        top_params: parameters of a classifier on top, which belongs to no block and trains.
        trainable_variables: paths of the variables that the optimizer will move.
        rate_factors: for each of these, what part of the learning rate it trains with.
        moving_statistics: paths of the BatchNormalization statistics that training will move.
            Every other weight of the backbone stays bit-identical.
    """

    backbone: str
    level: str
    batch_norm: str
    blocks: tuple[Block, ...]
    trainable: tuple[bool, ...]
    block_trainable_params: tuple[int, ...]
    top_params: int
    trainable_variables: tuple[str, ...]
    rate_factors: tuple[float, ...]
    moving_statistics: tuple[str, ...]

    @property
    def total_params(self) -> int:
        """Number of parameters of the backbone."""
        return sum(block.params for block in self.blocks) + self.top_params

    @property
    def trainable_params(self) -> int:
        """Number of parameters of the blocks that move by gradient."""
        return sum(self.block_trainable_params)

    @property
    def prefix_blocks(self) -> int:
        """Number of blocks before the first that trains (the frozen prefix)."""
        return (*self.trainable, True).index(True)

    def __str__(self) -> str:
        """The table: one line a block, with bars for parameters and features, the totals below."""
        rows = [
            [*row, *(("#" if trains else ".") * math.ceil(length) for length in bars)]
            for row, trains, bars in zip(self._rows(), self.trainable, self._bars(), strict=True)
        ]
        table = [[*_HEAD, *_BARS], *rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if column in _LEFT else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in table
        ]
        rule = "  ".join("-" * width for width in widths)
        return "\n".join([self._title(), lines[0], rule, *lines[1:], rule, *self._notes()])

    def _repr_html_(self) -> str:
        """The table in a notebook: the bars are filled where the block trains, else hatched."""
        cells = "".join(f"<th>{name}</th>" for name in (*_HEAD, *_BARS))
        rows = "".join(
            f"<tr{' class=trains' if trains else ''}>"
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
            + "".join(f'<td><div class=bar style="width:{0.6 * w:.2f}em"></div></td>' for w in bars)
            + "</tr>"
            for row, trains, bars in zip(self._rows(), self.trainable, self._bars(), strict=True)
        )
        notes = "".join(f"<div>{html.escape(note)}</div>" for note in self._notes())
        return (
            f"<div class=freeze-plan><style>{_STYLE}</style><b>{html.escape(self._title())}</b>"
            f"<table><thead><tr>{cells}</tr></thead>"
            f"<tbody>{rows}</tbody></table>{notes}</div>"
        )

    def _rows(self) -> list[list[str]]:
        return [
            [
                block.name,
                f"{len(block.layers)}",
                f"{block.params:,}",
                f"{count:,}",
                " x ".join("?" if n is None else str(n) for n in block.output_shape[1:]),
                _in_bytes(_values(block)),
                "TRAINS" if trains else "frozen",
            ]
            for block, trains, count in zip(
                self.blocks, self.trainable, self.block_trainable_params, strict=True
            )
        ]

    def _bars(self) -> list[tuple[float, float]]:
        """Parameters and features of each block, where the largest has 10."""
        most = max(1, *(block.params for block in self.blocks))
        widest = max(1, *(_values(block) for block in self.blocks))
        return [(10 * b.params / most, 10 * _values(b) / widest) for b in self.blocks]

    def _title(self) -> str:
        return (
            f"{self.backbone}: {sum(self.trainable)} of {len(self.blocks)} blocks train "
            f"(level {self.level!r})"
        )

    def _notes(self) -> list[str]:
        norm = "in inference mode" if self.batch_norm == "frozen" else "training"
        between = self.trainable.count(False) - self.prefix_blocks
        notes = [
            f"{self.trainable_params:,} of {self.total_params:,} parameters train; the first "
            f"{self.prefix_blocks} blocks are the frozen prefix"
            + (f", {between} more are frozen behind it" if between else "")
        ]
        if any(self.trainable):
            notes.append(f"BatchNormalization of the trainable blocks: {norm}")
        factors = self.rate_factors
        if factors and min(factors) < 1:
            notes.append(
                f"learning rate: x{max(factors):.3g} in the last block that trains, "
                f"x{min(factors):.3g} in the first"
            )
        if self.top_params:
            notes.append(f"+ {self.top_params:,} parameters of the classifier on top, which trains")
        return notes


_HEAD = ("block", "layers", "parameters", "trainable", "output shape", "features", "")
_BARS = ("parameters", "features")
_LEFT = {0, 4, 6, 7, 8}

# Told apart in black and white too: what trains is bold with a filled bar, the rest is hatched.
_STYLE = (
    ".freeze-plan table{border-collapse:collapse;font-size:.9em}"
    ".freeze-plan td,.freeze-plan th{text-align:right;padding:.1em .6em;white-space:nowrap}"
    ".freeze-plan tr>:first-child,.freeze-plan tr>:nth-child(n+8){text-align:left}"
    ".freeze-plan .trains{font-weight:bold}"
    ".freeze-plan .bar{height:.8em;border:1px solid;box-sizing:border-box;opacity:.7;"
    "background:repeating-linear-gradient(45deg,transparent 0 3px,currentColor 3px 4px)}"
    ".freeze-plan .trains .bar{background:currentColor;opacity:1}"
)


def _values(block: Block) -> int:
    """How many numbers a block hands on for one image; 0 where the image size is open."""
    return math.prod(n or 0 for n in block.output_shape[1:])


def _in_bytes(values: int) -> str:
    """What so many numbers take as float32."""
    size = 4 * values
    if not size:
        return "?"
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"
