"""Figures of a fuzzing run, as Markdown: `python -m pytest -m slow tests/fuzz -s` prints them."""

from collections import Counter
from collections.abc import Sequence

from tests.fuzz.harness import Outcome, faults_of


def figures(name: str, outcomes: Sequence[Outcome]) -> str:
    """Return a table of what the calls of one kind did, its slowest input and its faults."""
    cases = len({outcome.index for outcome in outcomes})
    seconds = sum(outcome.seconds for outcome in outcomes)
    lines = [
        f"\n### {name}: {cases} cases, {len(outcomes)} calls, {seconds:.0f} s\n",
        "| input | call | taken | refused | fault | slowest, s | stray output |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    rows = sorted({(each.group, each.call) for each in outcomes})
    for group, call in rows:
        found = [each for each in outcomes if (each.group, each.call) == (group, call)]
        lines.append(_row(group, call, found))
    lines.append(_row("all", "all", outcomes))
    slowest = max(outcomes, key=lambda each: each.seconds)
    lines.append(
        f"\nSlowest: {slowest.seconds:.2f} s, case {slowest.index} ({slowest.call}), "
        f"{slowest.group}: {slowest.label[:120]!r}"
    )
    words = Counter((each.group, each.word) for each in outcomes if each.word)
    for (group, word), count in sorted(words.items()):
        lines.append(f"- {group}: {count} x {word}")
    lines += [f"- FAULT {count} x {first}" for first, count in faults_of(outcomes)]
    return "\n".join(lines)


def _row(group: str, call: str, outcomes: Sequence[Outcome]) -> str:
    results = Counter(each.result for each in outcomes)
    counts = " | ".join(str(results[what]) for what in ("taken", "refused", "fault"))
    slowest = max(each.seconds for each in outcomes)
    return f"| {group} | {call} | {counts} | {slowest:.2f} | {sum(o.stray for o in outcomes)} |"
