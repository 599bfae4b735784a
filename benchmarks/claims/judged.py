"""The verdicts on the claims as Markdown: a table of all, then each with what it rests on."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.claims import verdicts
from benchmarks.claims.verdicts import BETTER, UNDECIDED, WORSE, Absent, Comparison, Tightness, Verdict
from benchmarks.json_lines import Line
from benchmarks.rows import markdown


def summary(lines: Sequence[Line]) -> str:
    """The claims with their verdicts in a table, and in how many comparisons each was better and worse."""
    rows = []
    for number, (claim, verdict, evidence, _) in verdicts.judge(lines).items():
        compared = [one for one in evidence if isinstance(one, Comparison)]
        rows.append([number, claim, f"**{verdict}**", _counts(compared) if compared else ""])
    return markdown([["", "claim", "verdict", "comparisons"], ["---"] * 4, *rows])


def _counts(found: Sequence[Comparison]) -> str:
    """In how many comparisons the method of the claim has each outcome."""
    outcomes = [one.outcome for one in found]
    return ", ".join(f"{name} in {outcomes.count(name)}" for name in (BETTER, WORSE, UNDECIDED))


def in_full(lines: Sequence[Line]) -> str:
    """The verdicts, each with what it rests on."""
    return "\n\n".join(_judged(number, verdict) for number, verdict in verdicts.judge(lines).items())


def _judged(number: str, verdict: Verdict) -> str:
    head = f"**{number}: {verdict.verdict}.** {verdict.claim}"
    compared = [one for one in verdict.evidence if isinstance(one, Comparison)]
    bounds = [one for one in verdict.evidence if isinstance(one, Tightness)]
    parts = [_compared(compared)] if compared else [_tightness(bounds)] if bounds else []
    return "\n\n".join([head, *parts, *([_absent(verdict.absent)] if verdict.absent else [])])


def _compared(found: Sequence[Comparison]) -> str:
    rows = [
        [
            f"`{one.setting}`",
            one.measure,
            one.theirs.method,
            f"{100 * one.difference:+.1f}",
            f"{100 * one.interval[0]:+.1f} to {100 * one.interval[1]:+.1f}",
            one.outcome,
        ]
        for one in found
    ]
    ours = found[0].ours.method
    titles = ["setting", "accuracy", "compared with", "difference in points", "95 % interval", ours]
    table = markdown([titles, ["---", "---", "---", "---:", "---:", "---"], *rows])
    return f"Of {len(found)} comparisons, {ours} is {_counts(found)}.\n\n{table}"


def _absent(found: Sequence[Absent]) -> str:
    """What could not be compared, the settings of one reason together."""
    reasons: dict[str, list[str]] = {}
    for one in found:
        reasons.setdefault(f"{one.reason} ({', '.join(one.methods)})", []).append(f"`{one.setting}`")
    return "Not compared: " + "; ".join(f"{', '.join(where)}: {reason}" for reason, where in reasons.items()) + "."


def _tightness(found: Sequence[Tightness]) -> str:
    titles = ["setting", "method", "tighter on", "times", "linear loss", "attack", "bound", "second order"]
    titles += ["within it, by radius", "within the input gradient's"]
    rows = [
        [
            f"`{one.setting}`",
            one.method,
            f"{100 * one.share:.0f} %",
            f"{one.factor:.1f}",
            f"{one.linear:.2f}",
            f"{one.increase:.2f}",
            f"{one.bound:.2f}",
            f"{one.second_order:.2f}",
            *(" / ".join(f"{100 * share:.0f}" for share in shares) for shares in (one.kept, one.kept_by_input)),
        ]
        for one in found
    ]
    return markdown([titles, ["---", "---", *["---:"] * (len(titles) - 2)], *rows])
