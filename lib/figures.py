"""House style, layout and saving of figures; and the few kinds of chart that notebooks share.

Owns looks and files: every figure is saved as PNG and SVG with the tidy CSV it shows, and its bytes depend on nothing
but the data. It computes nothing that a claim rests on. Charts take tidy frames; intervals come with the data.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Image, Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from lib import paths, plain_data, storage
from lib.errors import InputError

COLOURS = dict(zip(("blue", "orange", "green", "vermilion", "purple", "brown", "pink", "grey", "yellow", "sky"),
                   sns.color_palette("colorblind", 10), strict=True))  # fmt: skip
OUTCOME_COLOURS = {"refused": COLOURS["blue"], "exact": COLOURS["vermilion"], "wrong": COLOURS["grey"]}
OUTCOME_NAMES = {"refused": "refuses", "exact": "complies exactly", "wrong": "wrong answer"}
CONTROL = {"color": COLOURS["grey"], "linestyle": ":"}
_DPI = 110
_CLIP = re.compile(r"url\(#(p[0-9a-f]{10})\)")


def _house_style() -> None:
    sns.set_theme(context="notebook", style="ticks", palette="colorblind")
    mpl.rcParams.update({
        "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11, "axes.titlelocation": "left",
        "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9, "legend.frameon": False,
        "figure.constrained_layout.use": True, "svg.hashsalt": "anatomy-of-refusal", "svg.fonttype": "path",
        "font.family": "DejaVu Sans", "lines.linewidth": 1.8,
    })  # fmt: skip


_house_style()


def canvas(
    width: float = 10.0, height: float = 3.8, rows: int = 1, columns: int = 2, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure in the house style (inches) and its axes as an array of shape [rows, columns]."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure: Figure, name: str, data: pd.DataFrame, alt: str, profile: str, seed: int) -> Markdown:
    """Write `name`.png, .svg and .csv into the run's figures folder, show the PNG and return its caption.

    `alt` is both the caption and what a reader hears who cannot see the figure: what is shown, with its numbers.

    `name` is "07_residual_space.hd.2": the notebook, then the claim. Bytes are the same whenever data and code are.
    """
    png = store(figure, paths.run_folder(profile, seed) / "figures", name, data, alt)
    width = round(figure.get_figwidth() * 80)
    display(Image(data=png, format="png", width=width, metadata={"alt": alt}))
    return Markdown(f"*{alt}*")


def store(figure: Figure, folder: Path, name: str, data: pd.DataFrame, alt: str) -> bytes:
    """The files that `save` writes, in a folder; returns the PNG."""
    if not alt.strip():
        raise InputError(f"figure {name} has no alt text; say in a sentence what it shows")
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", dpi=_DPI, metadata={"Software": None})
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Title": alt})
    for suffix, content in (("png", png.getvalue()), ("svg", _numbered(svg.getvalue()).encode())):
        with storage.replacing(folder / f"{name}.{suffix}") as temporary:
            temporary.write_bytes(content)
    storage.write_text(folder / f"{name}.csv", data.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    return png.getvalue()


def _numbered(svg: str) -> str:
    """The text of an SVG with its clip paths numbered. matplotlib names them by a hash of their corners to the last
    bit, in which the layout differs from run to run: its solver goes through constraints by their address."""
    names = {name: f"clip{number}" for number, name in enumerate(dict.fromkeys(_CLIP.findall(svg)))}
    return re.sub(r"\bp[0-9a-f]{10}\b", lambda found: names.get(found[0], found[0]), svg)


def panels(**parts: pd.DataFrame) -> pd.DataFrame:
    """One tidy table of everything a figure shows, with a column `panel`, for the CSV behind it."""
    return pd.concat([part.assign(panel=name) for name, part in parts.items()], ignore_index=True)


def published(name: str) -> pd.DataFrame:
    """A table of `data/published`: the papers' numbers, each row with source, version and reliability."""
    path: Path = paths.PUBLISHED / f"{name}.csv"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in paths.PUBLISHED.glob("*.csv")))
        raise InputError(f"no published table {name!r}; there are: {known}")
    table = plain_data.read_table(path)
    missing = {"claim", "source", "version", "reliability"} - set(table.columns)
    if missing:
        raise InputError(
            f"{path.name} lacks the columns {', '.join(sorted(missing))}; every published number names its source"
        )
    if table.isna().to_numpy().any():
        row, column = (int(places[0]) for places in np.nonzero(table.isna().to_numpy()))
        raise InputError(f"row {row + 1} of {path.name} has nothing in {table.columns[column]}; fill it in")
    return table


def relative_depth(block: ArrayLike, blocks: int) -> np.ndarray:
    """(block + 1) / blocks, so that models of different depth share an axis."""
    return (np.asarray(block) + 1) / blocks


# charts --------------------------------------------------------------------------------------------------------------
def outcomes(axis: Axes, rates: pd.DataFrame, order: Sequence[str], label: str, attack: str = "exact") -> None:
    """Stacked bars of the three outcomes (they sum to 1), one bar a cell, the interval drawn for `attack`.

    `rates` has columns cell, outcome, share, lower, upper (see `behaviour.rates`).
    """
    table = rates.pivot(index="cell", columns="outcome", values="share").loc[list(order)]
    base = np.zeros(len(order))
    stack = [attack, *(o for o in ("wrong", "refused", "exact") if o != attack)]
    for outcome in stack:
        axis.bar(range(len(order)), table[outcome], bottom=base, color=OUTCOME_COLOURS[outcome], width=0.82,
                 label=OUTCOME_NAMES[outcome], linewidth=0)  # fmt: skip
        base = base + table[outcome].to_numpy()
    shown = rates[rates["outcome"] == attack].set_index("cell").loc[list(order)]
    spread = np.abs(shown[["lower", "upper"]].to_numpy().T - shown["share"].to_numpy())
    axis.errorbar(range(len(order)), shown["share"], yerr=spread, fmt="none", ecolor="black", elinewidth=1, capsize=2)
    axis.set(xticks=range(len(order)), ylim=(0, 1), xlim=(-0.6, len(order) - 0.4), title=label)
    axis.set_xticklabels([name.split("/")[-1] for name in order], rotation=45, ha="right")


def curves(
    axis: Axes, data: pd.DataFrame, x: str, y: str, by: str, colours: dict[str, object] | None = None,
    styles: dict[str, str] | None = None, markers: bool = True,
) -> None:  # fmt: skip
    """One line for each value of column `by`; a band where the frame has columns `lower` and `upper`."""
    palette = list(COLOURS.values())
    for number, (name, part) in enumerate(data.groupby(by, sort=False)):
        colour = (colours or {}).get(str(name), palette[number % len(palette)])
        axis.plot(part[x], part[y], color=colour, linestyle=(styles or {}).get(str(name), "-"), label=str(name),
                  marker="o" if markers else None, markersize=4)  # fmt: skip
        if {"lower", "upper"} <= set(part.columns):
            axis.fill_between(part[x], part["lower"], part["upper"], color=colour, alpha=0.18, linewidth=0)


def scatter(axis: Axes, data: pd.DataFrame, colour_by: str, palette: dict[str, object], title: str) -> None:
    """Prompts on two axes (columns `first`, `second`), coloured by a column."""
    for name, colour in palette.items():
        part = data[data[colour_by] == name]
        axis.scatter(part["first"], part["second"], s=9, color=colour, alpha=0.65, linewidth=0, label=name)
    axis.set(title=title, xlabel="first axis", ylabel="second axis")
