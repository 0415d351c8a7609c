"""The plan of a fine-tuning phase: which blocks of a backbone are frozen, and which train."""

from __future__ import annotations

import math
from dataclasses import dataclass

from finetune_kit import _html
from finetune_kit._model.blocks import Block
from finetune_kit._text import aligned, plural


@dataclass(frozen=True)
class FreezePlan:
    """What a `FineTuneSpec` means for one backbone; prints as a table.

    Attributes:
        backbone: name of the backbone.
        level: granularity of the blocks, see `conv_blocks`.
        batch_norm: what BatchNormalization does in trainable blocks, see `FineTuneSpec`.
        blocks: all blocks, from the input to the output.
        trainable: for each block, whether it trains.
        block_trainable_params: for each block, how many of its parameters the optimizer updates.
        top_params: parameters of a classifier on top, which belongs to no block and trains.
        trainable_variables: paths of the variables that the optimizer updates.
        rate_factors: for each of these, the factor on the learning rate.
        moving_statistics: paths of the variables that layers themselves update in training, such
            as the statistics of BatchNormalization and the vectors of SpectralNormalization. All
            other weights of the backbone stay bit-identical.
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
        """Number of parameters in the blocks that the optimizer updates."""
        return sum(self.block_trainable_params)

    @property
    def prefix_blocks(self) -> int:
        """Number of blocks in the frozen prefix, before the first trainable block."""
        return (*self.trainable, True).index(True)

    def __str__(self) -> str:
        """Return the table: one line per block, then the totals."""
        rows = [_HEADER]
        for cells, trains, lengths in self._rows():
            mark = "#" if trains else "."
            rows.append(_with_bars(cells, [mark * math.ceil(length) for length in lengths]))
        header, *lines = aligned(rows, left=_LEFT).splitlines()
        rule = "-" * max(map(len, [header, *lines]))
        return "\n".join([self._title(), header, rule, *lines, rule, *self._notes()])

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        header = "".join(f"<th>{name}</th>" for name in _HEADER)
        rows = []
        for cells, trains, lengths in self._rows():
            bars = [f'<div class=bar style="width:{n:.2f}em"></div>' for n in lengths]
            row = _with_bars([_html.text(cell) for cell in cells], bars)
            kind = " class=trains" if trains else ""
            rows.append(f"<tr{kind}>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>")
        notes = "".join(f"<div>{_html.text(note, 400)}</div>" for note in self._notes())
        return (
            f"<div class=freeze-plan><style>{_STYLE}</style><b>{_html.text(self._title(), 400)}</b>"
            f"<table><thead><tr>{header}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>{notes}</div>"
        )

    def _rows(self) -> list[tuple[list[str], bool, tuple[float, float]]]:
        """Return for each block its cells, whether it trains, and the lengths of its bars."""
        most_params = max(1, *(block.params for block in self.blocks))
        most_values = max(1, *(_values(block) for block in self.blocks))
        rows = []
        for block, trains, params in zip(
            self.blocks, self.trainable, self.block_trainable_params, strict=True
        ):
            values = _values(block)
            cells = [
                block.name,
                f"{len(block.layers)}",
                f"{block.params:,}",
                f"{params:,}" if trains else "frozen",
                "x".join("?" if n is None else str(n) for n in block.output_shape[1:]),
                _float32_size(values),
            ]
            lengths = _BAR * block.params / most_params, _BAR * values / most_values
            rows.append((cells, trains, lengths))
        return rows

    def _title(self) -> str:
        count = sum(self.trainable)
        return (
            f"{self.backbone}: {count} of {plural(len(self.blocks), 'block')} "
            f"{'is' if count == 1 else 'are'} trainable (level {self.level!r})"
        )

    def _notes(self) -> list[str]:
        params = sum(block.params for block in self.blocks)
        notes = [
            f"{self.trainable_params:,} of {params:,} parameters are trainable; "
            f"{self._frozen_blocks()}."
        ]
        if any(self.trainable):
            mode = "inference mode" if self.batch_norm == "frozen" else "training mode"
            notes.append(f"BatchNormalization in the trainable blocks: {mode}.")
        factors = [factor for factor in self.rate_factors if factor < 1]
        if factors:
            notes.append(
                f"Learning rate: x{max(factors):.3g} in the last trainable block, "
                f"x{min(factors):.3g} in the first."
            )
        if self.top_params:
            notes.append(
                f"The classifier on top ({plural(self.top_params, 'parameter')}) is trainable and "
                "belongs to no block."
            )
        return notes

    def _frozen_blocks(self) -> str:
        prefix = self.prefix_blocks
        behind = self.trainable.count(False) - prefix
        text = f"the first {prefix} blocks are the frozen prefix"
        if prefix < 2:
            text = "the first block is the frozen prefix" if prefix else "there is no frozen prefix"
        if behind:
            text += f", and {plural(behind, 'later block')} {'is' if behind == 1 else 'are'} frozen"
        return text


def check_no_classifier(plan: FreezePlan) -> None:
    """Check that the backbone of a plan has no classifier on top."""
    if plan.top_params:
        raise ValueError(
            f"`backbone` must have no classifier, because `head` replaces it; build "
            f"{plan.backbone!r} with include_top=False. Received: a model with "
            f"{plural(plan.top_params, 'parameter')} behind its last block"
        )


_HEADER = ["block", "layers", "parameters", "", "trainable", "output shape", "output size", ""]
_LEFT = (0, 3, 7)  # the names and the bars
_BAR = 6  # length of the longest bar, in characters

# Readable in black and white: trainable rows are bold with a filled bar, frozen bars are hatched.
_STYLE = (
    ".freeze-plan table{border-collapse:collapse;font-size:.9em}"
    ".freeze-plan td,.freeze-plan th{text-align:right;padding:.1em .6em;white-space:nowrap}"
    ".freeze-plan tr>:nth-child(1),.freeze-plan tr>:nth-child(4n){text-align:left}"
    ".freeze-plan .trains{font-weight:bold}"
    ".freeze-plan .bar{height:.8em;border:1px solid;box-sizing:border-box;opacity:.7;"
    "background:repeating-linear-gradient(45deg,transparent 0 3px,currentColor 3px 4px)}"
    ".freeze-plan .trains .bar{background:currentColor;opacity:1}"
)


def _with_bars(cells: list[str], bars: list[str]) -> list[str]:
    """Put the two bars behind the numbers that they show: the parameters and the output size."""
    return [*cells[:3], bars[0], *cells[3:], bars[1]]


def _values(block: Block) -> int:
    """Return how many values a block puts out for one image; 0 where the image size is open."""
    return math.prod(n or 0 for n in block.output_shape[1:])


def _float32_size(values: int) -> str:
    """Return the size of so many float32 values as text."""
    size = 4 * values
    if not size:
        return "?"
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"
