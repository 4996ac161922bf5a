"""One try: hurt a run at a point, resume it, and compare with the run that nothing hurt."""

import json
import re
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from engine.errors import UserError
from tests.cli.conftest import write_site
from tests.faults.folders import Lost, differences, duplicates, is_log, steps
from tests.faults.jobs import CASES
from tests.faults.points import MOMENTS, Fault, Point
from tests.faults.server import Launch, Outcome, Server, left_over

RESULTS = ("metrics.json", "detections.json", "pr_curves.png")
"""What an evaluation writes: where that fails the training may go on, or end with code 2."""
MAX_RESUMES = 25
_NAME = re.compile(r"(\w+):(\d):([a-z]+)(-group)?(?:\+(\d+))?@(\d+)(/[a-z]+)?(:rank\d)?(!)?")


@dataclass(frozen=True)
class Try:
    """A fault in a run.

    case: a key of `CASES`.
    processes: 1, or as many as torchrun would start.
    fault: what happens.
    chain: whether it happens to each resumed run as well, until one is through.
    """

    case: str
    processes: int
    fault: Fault
    chain: bool = False

    def __str__(self) -> str:
        """Return the name that `parse` reads."""
        fault = self.fault
        whom = "-group" if fault.group else ""
        again = f"+{fault.again}" if fault.again else ""
        channel = "" if fault.channel == "main" else f"/{fault.channel}"
        rank = f":rank{fault.rank}" if fault.rank else ""
        place = f"{fault.point}{channel}{rank}{'!' if self.chain else ''}"
        return f"{self.case}:{self.processes}:{fault.do}{whom}{again}@{place}"

    @classmethod
    def parse(cls, name: str) -> "Try":
        """Read a name as `apart:1:kill@57`, `readers:2:term-group+3@40/train:rank1`."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{name}: expected a name as apart:1:kill@57")
        case, processes, do, group, again, point, channel, rank, chain = match.groups()
        fault = Fault(
            do=do,
            point=int(point),
            channel=channel[1:] if channel else "main",
            rank=int(rank[-1]) if rank else 0,
            group=bool(group),
            again=int(again or 0),
        )
        return cls(case, int(processes), fault, bool(chain))


@dataclass(frozen=True)
class Whole:
    """The uninterrupted run: its folder, that with all checkpoints, and its points.

    points: of the main thread, by rank.
    events: points of TensorBoard's thread.
    flaws: what is wrong with it by itself.
    """

    output: Path
    history: Path | None
    points: tuple[tuple[Point, ...], ...]
    events: int
    flaws: tuple[str, ...]

    @property
    def last_step(self) -> int:
        """The step that it ended at."""
        return self.points[0][-1].step


class Bench:
    """A folder for runs and a server to run them."""

    def __init__(self, root: Path, server: Server, *, keep: bool) -> None:
        """Work in `root`; `keep`: whether a detector's weights stay there when a try has failed."""
        self.root, self.server, self.keep = root, server, keep
        if not (root / "site").exists():
            write_site(root / "site")
        self._wholes: dict[tuple[str, int], Whole] = {}

    def whole(self, case: str, processes: int) -> Whole:
        """Return the run of a case without a fault."""
        key = case, processes
        if key not in self._wholes:
            self._wholes[key] = self._run_whole(case, processes)
        return self._wholes[key]

    def _run_whole(self, case: str, processes: int) -> Whole:
        notes = self.root / f"whole_{case}_{processes}"
        notes.mkdir(parents=True)
        launch = self._launch(case, processes, notes, trace=True)
        outcome = self.server.launch(launch)
        assert outcome.codes == [0] * processes, outcome.errs
        traces = [
            json.loads((notes / f"trace{rank}.json").read_text()) for rank in range(processes)
        ]
        history = None
        if not CASES[case].detector:  # its checkpoints are large
            history = notes / "history"
            (notes / "notes").mkdir()
            again = replace(launch, output=str(history), notes=str(notes / "notes"), history=True)
            outcome = self.server.launch(again)
            assert outcome.codes == [0] * processes, outcome.errs
        return Whole(
            notes / "run",
            history,
            tuple(tuple(Point(**point) for point in trace["points"]) for trace in traces),
            traces[0].get("events", 0),
            tuple(duplicates(notes / "run")),
        )

    def _launch(
        self, case: str, processes: int, notes: Path, *, trace: bool = False, resume: bool = False
    ) -> Launch:
        return Launch(
            case=case,
            folder=str(self.root / "site"),
            output=str(notes / "run"),
            notes=str(notes),
            processes=processes,
            trace=trace,
            resume=resume,
        )

    def run(self, each: Try, server: Server) -> list[str]:
        """Return what is wrong after a try; its folder stays then."""
        whole = self.whole(each.case, each.processes)
        folder = self.root / re.sub(r"\W", "_", str(each))
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "hurt").mkdir(parents=True)
        launch = self._launch(each.case, each.processes, folder)
        hurt = replace(launch, notes=str(folder / "hurt"), fault=asdict(each.fault))
        outcome = server.launch(hurt)
        found = judge(each, whole, outcome, hurt)
        outcomes = [outcome]
        while outcomes[-1].codes[0] != 0 and len(outcomes) < MAX_RESUMES:
            there = bool(steps(folder / "run"))
            again = each.chain and len(outcomes) < MAX_RESUMES - 1
            following = replace(launch, resume=there, fault=asdict(each.fault) if again else None)
            outcomes.append(server.launch(following))
            if not again:
                found += _ended_well(outcomes[-1], "resumed" if there else "started again")
                break
        if outcomes[-1].codes == [0] * each.processes:
            found += self._compare(each, whole, outcome, folder)
            if each.fault.point % 5 == 0 and not found:
                outcomes.append(server.launch(replace(launch, resume=True)))
                lines = _ended_well(outcomes[-1], "again")
                lines += self._compare(each, whole, outcome, folder)
                found += [f"resumed when finished: {line}" for line in lines]
        for one in outcomes:
            found += [f"process left over: {name}" for name in left_over(one)]
        if not found:
            shutil.rmtree(folder)
        elif CASES[each.case].detector and not self.keep:
            for path in [*folder.rglob("*.pt"), *folder.rglob("*.safetensors")]:
                path.unlink()  # a hundred megabytes each
        return found

    def _compare(self, each: Try, whole: Whole, outcome: Outcome, folder: Path) -> list[str]:
        """Compare the folder of a run that is through; `outcome` is that of the hurt one."""
        lost: Lost = ""
        if outcome.codes[0] == 0 and each.fault.do in ("full", "filled"):
            lost = "evaluation" if _struck(folder / "hurt").path in RESULTS else "logs"
        if outcome.codes[0] == 0 and each.fault.do == "kill":
            lost = "evaluation"  # of a reader
        try:
            return differences(whole.output, folder / "run", history=whole.history, lost=lost)
        except UserError as error:
            return [f"cannot be read: {error}"]


def _struck(notes: Path) -> Point:
    point = Point(**json.loads((notes / "struck.json").read_text()))
    return replace(point, path=point.path.removesuffix(".partial"))


def judge(each: Try, whole: Whole, outcome: Outcome, launch: Launch) -> list[str]:
    """Return what is wrong with how a run ended that was hurt."""
    notes, fault = Path(launch.notes), each.fault
    if not (notes / "struck.json").exists():
        return ["the fault did not happen"]
    point, found = _struck(notes), []
    expected = whole.points[fault.rank][fault.point - 1 :][:1] if fault.channel == "main" else ()
    if expected and point != replace(expected[0], path=expected[0].path.removesuffix(".partial")):
        found.append(f"the points are others in each run: {point}")
    if outcome.hung:
        found.append(f"hangs: {outcome.hung}")
    text = outcome.errs[fault.rank]
    of_reader = fault.channel in ("train", "val") and not fault.group
    others = [err for rank, err in enumerate(outcome.errs) if rank != fault.rank]
    found += [f"another process: {line}" for err in others for line in _tracebacks(err)]
    found += _tracebacks(text) if of_reader or fault.do not in ("kill", "torn") else []
    code = outcome.codes[fault.rank]
    if of_reader:
        allowed = (2,) if fault.channel == "train" else (0, 2)
        return found + _code(code, allowed, text)
    if fault.do in ("kill", "torn"):
        return found + _code(code, (-9,), text)
    if fault.do in ("full", "filled"):
        return found + _code(code, _when_full(fault, point), text) + _said_full(outcome, point)
    return found + _judge_signal(each, whole, outcome, point, Path(launch.output))


def _tracebacks(text: str) -> list[str]:
    if "Traceback" not in text:
        return []
    named = [line for line in text.splitlines() if re.match(r"[\w.]+(Error|Interrupt)\b", line)]
    return [f"traceback: {named[-1][:150] if named else 'of an exception without a name'}"]


def _code(code: int, allowed: tuple[int, ...], text: str) -> list[str]:
    if code not in allowed:
        return [f"exit code {code} instead of {' or '.join(map(str, allowed))}"]
    # notes may stand before the error
    if code == 2 and not text.rstrip("\n").split("\n")[-1].startswith("error: "):
        return [f"code 2 without a last line that says why: {text[-150:]}"]
    return []


def _when_full(fault: Fault, point: Point) -> tuple[int, ...]:
    if is_log(point.path) or fault.channel == "events":
        return (0,) if fault.do == "full" else (0, 2)
    return (0, 2) if _probes(point) or point.path in RESULTS else (2,)


def _probes(point: Point) -> bool:
    """Whether the run does without: a file to show that one can be written, words in the lock."""
    return "lock" in point.path or (point.name == "open" and point.path in (".", "checkpoints"))


def _said_full(outcome: Outcome, point: Point) -> list[str]:
    if (
        outcome.codes[0] == 0
        and not _probes(point)
        and not re.search(r"[Nn]o space", outcome.outs[0] + outcome.errs[0])
    ):
        return ["the full disk is not mentioned"]
    return []


def _judge_signal(
    each: Try, whole: Whole, outcome: Outcome, point: Point, output: Path
) -> list[str]:
    fault, code = each.fault, outcome.codes[each.fault.rank]
    at_once = -15 if fault.do == "term" else -2
    if point.step == 0:  # perhaps before the handlers are there
        return _code(code, (130, at_once), "")
    if fault.again > 1:
        return _code(code, (0, 130, at_once), "")
    nearly_done = point.step in (-1, whole.last_step)
    found = []
    for one in outcome.codes:
        found += _code(one, (0, 130) if nearly_done else (130,), "")
    if 0 in outcome.codes and len(set(outcome.codes)) > 1:
        found.append(f"exit codes {outcome.codes}")
    # at the end Ctrl-C ends the command at once, and that is its answer; process 1 writes nothing
    answered = nearly_done or "stopping" in outcome.outs[0] + outcome.errs[0]
    if code == 130 and not answered and (fault.rank == 0 or fault.group):
        found.append("the signal is not acknowledged")
    kept = steps(output)
    saved = int(kept[-1].stem.removeprefix("step_")) if kept else 0
    if code != 0 and saved < point.step:
        found.append("steps are lost: no checkpoint of the step at which the signal came")
    return found


def _ended_well(outcome: Outcome, how: str) -> list[str]:
    found = [f"{how}: hangs: {outcome.hung}"] if outcome.hung else []
    found += [f"{how}: {line}" for line in _tracebacks("\n".join(outcome.errs))]
    if set(outcome.codes) != {0}:
        last = outcome.errs[0].strip().splitlines()[-1:] or ["no line"]
        found.append(f"{how}: exit code {outcome.codes}: {last[0][:150]}")
    return found


def writes(points: tuple[Point, ...]) -> list[int]:
    """Return the numbers of the points that change the folder."""
    return [n for n, point in enumerate(points, start=1) if point.name not in MOMENTS]
