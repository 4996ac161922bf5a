"""Report of a fuzzing run, as Markdown; printed by `python -m pytest -m slow tests/fuzz -s`."""

from collections import Counter
from collections.abc import Sequence

from tests.fuzz.harness import Outcome, faults_of


def make_report(name: str, outcomes: Sequence[Outcome]) -> str:
    """Return a table of the outcomes of one kind of input, its slowest input and its faults."""
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
    notes = Counter((each.group, each.note) for each in outcomes if each.note)
    for (group, note), count in sorted(notes.items()):
        lines.append(f"- {group}: {count} x {note}")
    lines += [f"- FAULT {count} x {first}" for first, count in faults_of(outcomes)]
    return "\n".join(lines)


def _row(group: str, call: str, outcomes: Sequence[Outcome]) -> str:
    results = Counter(each.result for each in outcomes)
    counts = " | ".join(str(results[what]) for what in ("taken", "refused", "fault"))
    slowest = max(each.seconds for each in outcomes)
    return f"| {group} | {call} | {counts} | {slowest:.2f} | {sum(o.stray for o in outcomes)} |"
