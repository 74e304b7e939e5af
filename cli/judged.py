"""How a judgement is told: its lines, and the checks that the user asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from qgraph.errors import CheckFailed, DataError, OptionError, suggest

if TYPE_CHECKING:  # it takes NumPy, which --help does without
    from qgraph.tasks.base import Metric

UNSURE = 0.7  # below, it is said that the task was guessed


def agreement_lines(found: Mapping[str, Any], every: bool = False) -> list[str]:
    """The lines of an agreement, the worst output first. every: all metrics, not only the main one of each task."""
    notes = f"with {found.get('with', 'the float model')}"
    if found.get("calibrated_on_it"):
        notes += "; calibrated on the same images"
    first, *others = found["tasks"]
    count = len(found["outputs"])
    which = f"worst output {found['worst']} (of {count})" if count > 1 else "output"
    sqnr, images = f"{which} {_value('sqnr_db', found['sqnr_db'])}", f"on {found['images']} images"
    told = (f"{sqnr}, cosine {found['cosine']:g} {images}" if first["task"] == "values"
            else f"{_metrics(first, every)} {images}, {sqnr}")
    lines = [f"{told} ({notes})"]
    lines += [f"{_metrics(row, every)} in {' + '.join(row['outputs'])}" for row in others]
    guessed = sorted({row["task"] for row in found["tasks"] if row["sure"] < UNSURE and row["task"] != "values"})
    if guessed:
        lines.append(f"taken for {' and '.join(guessed)}; --task says what it is")
    return lines


def ruin_lines(found: Mapping[str, Any]) -> list[str]:
    """What is said of a model of no use: its outputs, the layers to blame, what to try."""
    lines = []
    for row in found["outputs"]:
        value, least = (_value(row["metric"], row[key]) for key in ("value", "least"))
        names = " + ".join(row["names"])
        lines.append(f"{names} ({row['task']}): {_title(row['metric'])} {value}, want at least {least}")
    if found["layers"]:
        lines.append(f"most noise comes from {', '.join(found['layers'])}")
    return [*lines, *(f"try {remedy}" for remedy in found["try"])]


def score_lines(scores: Mapping[str, float | None]) -> list[str]:
    """A line for each metric that labels give."""
    return [f"{name:<13} {_value(name, value)}" for name, value in scores.items()]


def timing_lines(found: Mapping[str, Any]) -> list[str]:
    """A line for each model: its time, how that spreads, and as a part of the first one's."""
    threads = "the engine's threads" if found["threads"] is None else f"{found['threads']} thread(s)"
    lines = []
    for number, (name, row) in enumerate(found["models"].items()):
        told = [f"{row['ms_per_image']:.3f} +- {row['ms_spread']:.3f}" if row["ms_per_image"] else "not known"]
        if row["images_per_s"]:
            told.append(f"{row['images_per_s']:g} images/s")
        if number and row["ratio"]:
            told.append(f"{row['ratio']:.2f} times the first")
        if row["memory_growth_mb"] is not None:
            told.append(f"{row['memory_growth_mb']:g} MiB")
        lines.append(f"ms_per_image  {name + ': ' if len(found['models']) > 1 else ''}{', '.join(told)}")
    return [*lines, f"timed         {found['rounds']} rounds of up to {found['batch_size']} images, {threads}"]


def check(found: Mapping[str, Any] | None, scores: Mapping[str, float | None], min_agreement: float | None,
          min_sqnr: float | None, min_metrics: Sequence[tuple[str, float]]) -> None:
    """Raise CheckFailed where an output is worse than the user wants, DataError where that cannot be told.

    found: an agreement, None without a reference.  scores: by labels.
    """
    if found is None and (min_agreement is not None or min_sqnr is not None):
        raise DataError("--min-agreement and --min-sqnr want a model to compare with: --reference MODEL")
    values = [*_values(found), *((name, value, "the labels") for name, value in scores.items())]
    if min_agreement is not None:
        assert found is not None
        mains = [(row["main"], row["metrics"][row["main"]], " + ".join(row["outputs"])) for row in found["tasks"]
                 if _metric(row["main"]).unit == "%"]
        if not mains:
            raise DataError("no output has an agreement in percent, so --min-agreement cannot be checked (--min-sqnr "
                            "can; --task says what outputs mean)")
        _least(mains, min_agreement)
    if min_sqnr is not None:
        _least([row for row in values if row[0] == "sqnr_db"], min_sqnr)
    for name, least in min_metrics:
        if name not in (known := dict.fromkeys(row[0] for row in values)):
            raise OptionError(f"--min-metric {name}: is not known here, there are {', '.join(known) or 'none'}"
                              + suggest(name, known, " (did you mean {}?)"))
        _least([row for row in values if row[0] == name], least)


def _values(found: Mapping[str, Any] | None) -> Iterator[tuple[str, float | None, str]]:
    """(metric, value, outputs) of an agreement."""
    if found is None:
        return
    for output in found["outputs"]:
        yield from ((name, output[name], output["name"]) for name in ("sqnr_db", "cosine", "max_error"))
    for row in found["tasks"]:
        if row["task"] != "values":
            yield from ((name, value, " + ".join(row["outputs"])) for name, value in row["metrics"].items())


def _least(rows: Sequence[tuple[str, float | None, str]], least: float) -> None:
    """Raise CheckFailed for the worst value of a metric, or of several in one unit, if it is beyond the bound."""
    known = sorted((value, name, where) for name, value, where in rows if value is not None)
    if not known:
        return
    up = _metric(known[0][1]).up
    value, name, where = known[0] if up else known[-1]
    if value < least if up else value > least:
        raise CheckFailed(f"{_title(name)} of {where} is {_value(name, value)}, want at {'least' if up else 'most'} "
                          f"{_value(name, least)}")


def wanted_metrics(context: click.Context, parameter: click.Parameter,
                   given: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Each ``NAME=X`` of --min-metric, a name that some task knows."""
    return tuple(map(_wanted, given))


def _wanted(text: str) -> tuple[str, float]:
    from qgraph.tasks.words import metric_names

    name, equals, number = text.partition("=")
    try:
        if not equals:
            raise ValueError
        least = float(number)
    except ValueError:
        raise OptionError(f"--min-metric is {text!r}, want NAME=X such as top1=75") from None
    if (name := name.strip()) not in (known := metric_names()):
        raise OptionError(f"--min-metric {name}: no task has such a metric, there are {', '.join(known)}"
                          + suggest(name, known, " (did you mean {}?)"))
    return name, least


def _metrics(row: Mapping[str, Any], every: bool) -> str:
    names = [*row["metrics"]] if every and row["task"] != "values" else [row["main"]]
    return ", ".join(f"{_value(name, row['metrics'][name])} {_title(name)}" for name in names)


def _metric(name: str) -> Metric:
    from qgraph.tasks.words import metric

    return metric(name)


def _title(name: str) -> str:
    from qgraph.tasks.words import title

    return title(name)


def _value(name: str, value: float | None) -> str:
    from qgraph.tasks.words import with_unit

    return with_unit(name, value)
