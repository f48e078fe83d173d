"""The training's report as plain text: models with intervals, standard errors, the verdict, and every warning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from models.gnn.evaluate import Interval, LabelReport, Metrics, ModelScore

QUESTIONS = {
    "dir": "does the average price rise over the next {h} bars, entering one bar later?",
    "vol_regime": "is the volatility of the next {h} bars above its own seven-day median?",
}
COLUMNS = ("model", "accuracy", "95 % interval", "AUC", "95 % interval", "log-loss", "Brier", "ECE", "MCC")


def render(metrics: Metrics) -> str:
    """The whole report, without colour."""
    parts = [line for label in metrics.labels for line in [*label_lines(label), ""]]
    count = f"{metrics.trials} models fitted and tested; no setting was searched, no seed was picked."
    return "\n".join([*parts, count])


def table_rows(report: LabelReport) -> list[tuple[str, ...]]:
    """One row per model under COLUMNS, as text."""
    return [_row(model, report.verdict.model) for model in report.models]


def label_lines(report: LabelReport) -> list[str]:
    """The lines of one label."""
    n = report.samples
    question = QUESTIONS.get(report.label, "").format(h=report.horizon_bars)
    head = [
        f"{report.label}: {question}",
        f"  {n['train']:,} samples to train, {n['validation']:,} to validate, {n['test']:,} to test, "
        f"{report.share_of_ones['test']:.1%} of them yes; {_plural(report.folds, 'fold')}",
        f"  standard error of an accuracy: {report.standard_error:.1%} (0.5 / sqrt(test samples / horizon))",
        "",
    ]
    return [*head, *_aligned([COLUMNS, *table_rows(report)]), "", *_conclusions(report)]


def _conclusions(report: LabelReport) -> list[str]:
    v = report.verdict
    lines = [
        f"  Verdict: {v.model} is {v.word} {_preposition(v.word)} {v.baseline}, the best baseline "
        f"(log-loss {_signed(v.difference)}); {v.reason}."
    ]
    lines += [f"  Edges: {c.model} minus {c.other}: log-loss {_signed(c.difference)}: {c.word}." for c in report.edges]
    trading = next((m.trading for m in report.models if m.name == v.model), None)
    if trading:
        costs = sorted((int(cost), value) for cost, value in trading.net_bp.items() if cost != "0")
        net = ", ".join(f"{value:+.1f} at {cost}" for cost, value in costs)
        lines.append(
            f"  Trading {v.model}: {trading.gross_bp:+.1f} bp a trade gross; net of a round trip in bp: {net}; "
            f"break-even accuracy at 10 bp {trading.break_even_accuracy['10']:.1%}."
        )
    return lines + [f"  ! {warning}" for warning in report.warnings]


def _row(model: ModelScore, chosen: str) -> tuple[str, ...]:
    m = model.metrics
    return (
        f"{model.name} *" if model.name == chosen else model.name,
        f"{m['accuracy'].value:.3f}", _range(m["accuracy"]), f"{m['auc'].value:.3f}", _range(m["auc"]),
        f"{m['log_loss'].value:.4f}", f"{m['brier'].value:.4f}", f"{m['ece'].value:.3f}", f"{m['mcc'].value:+.3f}",
    )  # fmt: skip


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  " + "  ".join([row[0].ljust(widths[0]), *numbers])


def _range(value: Interval) -> str:
    return f"[{value.low:.3f}, {value.high:.3f}]"


def _signed(value: Interval) -> str:
    return f"{value.value:+.4f} [{value.low:+.4f}, {value.high:+.4f}]"


def _preposition(word: str) -> str:
    return "from" if word == "indistinguishable" else "than"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
