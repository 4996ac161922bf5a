"""One trial: interrupt a run at a point, resume it, and compare it with an uninterrupted run."""

import json
import re
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from engine.errors import UserError
from tests.cli.conftest import write_site
from tests.faults.fault_injection import NON_WRITING, Fault, Point
from tests.faults.fork_server import Launch, Outcome, Server, left_over
from tests.faults.jobs import CASES
from tests.faults.run_comparison import Lost, differences, duplicates, is_log, steps

RESULTS = ("metrics.json", "detections.json", "pr_curves.png")
"""Files of an evaluation. If writing fails, training may continue or end with exit code 2."""
MAX_RESUMES = 25
_NAME = re.compile(r"(\w+):(\d):([a-z]+)(-group)?(?:\+(\d+))?@(\d+)(/[a-z]+)?(:rank\d)?(!)?")


@dataclass(frozen=True)
class Trial:
    """A fault in a run.

    case: a key of `CASES`.
    processes: number of processes, as torchrun would start them.
    fault: the fault.
    chain: whether each resumed run gets the fault too, until one finishes.
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
    def parse(cls, name: str) -> "Trial":
        """Parse a name such as `apart:1:kill@57`, `workers:2:term-group+3@40/train:rank1`."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{name}: expected a name such as apart:1:kill@57")
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
class ReferenceRun:
    """The uninterrupted run of a case.

    output: its run folder.
    history: run folder of the same run with the checkpoints of all steps, or None.
    points: of the main thread, by rank.
    events: number of writes of TensorBoard's file.
    defects: problems of the run itself.
    """

    output: Path
    history: Path | None
    points: tuple[tuple[Point, ...], ...]
    events: int
    defects: tuple[str, ...]

    @property
    def last_step(self) -> int:
        """The step at which it ended."""
        return self.points[0][-1].step


class TrialRunner:
    """Runs trials in a folder."""

    def __init__(self, root: Path, server: Server, *, keep: bool) -> None:
        """Work in `root`; `keep`: whether to keep a detector's weights after a failed trial."""
        self.root, self.server, self.keep = root, server, keep
        if not (root / "site").exists():
            write_site(root / "site")
        self._references: dict[tuple[str, int], ReferenceRun] = {}

    def reference(self, case: str, processes: int) -> ReferenceRun:
        """Return the uninterrupted run of a case; it is run once."""
        key = case, processes
        if key not in self._references:
            self._references[key] = self._run_reference(case, processes)
        return self._references[key]

    def _run_reference(self, case: str, processes: int) -> ReferenceRun:
        logs_folder = self.root / f"reference_{case}_{processes}"
        logs_folder.mkdir(parents=True)
        launch = self._launch(case, processes, logs_folder, trace=True)
        outcome = self.server.launch(launch)
        assert outcome.codes == [0] * processes, outcome.errs
        traces = [
            json.loads((logs_folder / f"trace{rank}.json").read_text()) for rank in range(processes)
        ]
        history = None
        if not CASES[case].detector:  # its checkpoints are large
            history = logs_folder / "history"
            (logs_folder / "history_logs").mkdir()
            again = replace(
                launch,
                output=str(history),
                logs_folder=str(logs_folder / "history_logs"),
                history=True,
            )
            outcome = self.server.launch(again)
            assert outcome.codes == [0] * processes, outcome.errs
        return ReferenceRun(
            logs_folder / "run",
            history,
            tuple(tuple(Point(**point) for point in trace["points"]) for trace in traces),
            traces[0].get("events", 0),
            tuple(duplicates(logs_folder / "run")),
        )

    def _launch(
        self,
        case: str,
        processes: int,
        logs_folder: Path,
        *,
        trace: bool = False,
        resume: bool = False,
    ) -> Launch:
        return Launch(
            case=case,
            folder=str(self.root / "site"),
            output=str(logs_folder / "run"),
            logs_folder=str(logs_folder),
            processes=processes,
            trace=trace,
            resume=resume,
        )

    def run(self, each: Trial, server: Server) -> list[str]:
        """Run a trial; return its problems. Its folder is kept if there are any."""
        reference = self.reference(each.case, each.processes)
        folder = self.root / re.sub(r"\W", "_", str(each))
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "interrupted").mkdir(parents=True)
        launch = self._launch(each.case, each.processes, folder)
        interrupted = replace(
            launch, logs_folder=str(folder / "interrupted"), fault=asdict(each.fault)
        )
        outcome = server.launch(interrupted)
        found = exit_problems_of_interrupted(each, reference, outcome, interrupted)
        outcomes = [outcome]
        while outcomes[-1].codes[0] != 0 and len(outcomes) < MAX_RESUMES:
            has_checkpoint = bool(steps(folder / "run"))
            again = each.chain and len(outcomes) < MAX_RESUMES - 1
            following = replace(
                launch, resume=has_checkpoint, fault=asdict(each.fault) if again else None
            )
            outcomes.append(server.launch(following))
            if not again:
                found += _exit_problems(
                    outcomes[-1], "resumed" if has_checkpoint else "started again"
                )
                break
        if outcomes[-1].codes == [0] * each.processes:
            found += self._compare(each, reference, outcome, folder)
            if each.fault.point % 5 == 0 and not found:
                outcomes.append(server.launch(replace(launch, resume=True)))
                lines = _exit_problems(outcomes[-1], "again")
                lines += self._compare(each, reference, outcome, folder)
                found += [f"resumed when finished: {line}" for line in lines]
        for one in outcomes:
            found += [f"process left over: {name}" for name in left_over(one)]
        if not found:
            shutil.rmtree(folder)
        elif CASES[each.case].detector and not self.keep:
            for path in [*folder.rglob("*.pt"), *folder.rglob("*.safetensors")]:
                path.unlink()  # a hundred megabytes each
        return found

    def _compare(
        self, each: Trial, reference: ReferenceRun, outcome: Outcome, folder: Path
    ) -> list[str]:
        """Compare the folder of a finished run; `outcome` is that of the interrupted one."""
        lost: Lost = ""
        if outcome.codes[0] == 0 and each.fault.do in ("full", "filled"):
            lost = (
                "evaluation" if _injected_point(folder / "interrupted").path in RESULTS else "logs"
            )
        if outcome.codes[0] == 0 and each.fault.do == "kill":
            lost = "evaluation"  # a worker was killed during an evaluation
        try:
            return differences(
                reference.output, folder / "run", history=reference.history, lost=lost
            )
        except UserError as error:
            return [f"cannot be read: {error}"]


def _injected_point(logs_folder: Path) -> Point:
    point = Point(**json.loads((logs_folder / "injected.json").read_text()))
    return replace(point, path=point.path.removesuffix(".partial"))


def exit_problems_of_interrupted(
    each: Trial, reference: ReferenceRun, outcome: Outcome, launch: Launch
) -> list[str]:
    """Return the problems of how an interrupted run ended."""
    logs_folder, fault = Path(launch.logs_folder), each.fault
    if not (logs_folder / "injected.json").exists():
        return ["the fault did not happen"]
    point, found = _injected_point(logs_folder), []
    expected = (
        reference.points[fault.rank][fault.point - 1 :][:1] if fault.channel == "main" else ()
    )
    if expected and point != replace(expected[0], path=expected[0].path.removesuffix(".partial")):
        found.append(f"the points differ from run to run: {point}")
    if outcome.hung:
        found.append(f"hangs: {outcome.hung}")
    text = outcome.errs[fault.rank]
    of_worker = fault.channel in ("train", "val") and not fault.group
    others = [err for rank, err in enumerate(outcome.errs) if rank != fault.rank]
    found += [f"another process: {line}" for err in others for line in _tracebacks(err)]
    found += _tracebacks(text) if of_worker or fault.do not in ("kill", "torn") else []
    code = outcome.codes[fault.rank]
    if of_worker:
        allowed = (2,) if fault.channel == "train" else (0, 2)
        return found + _exit_code_problems(code, allowed, text)
    if fault.do in ("kill", "torn"):
        return found + _exit_code_problems(code, (-9,), text)
    if fault.do in ("full", "filled"):
        return (
            found
            + _exit_code_problems(code, _codes_when_full(fault, point), text)
            + _full_disk_problems(outcome, point)
        )
    return found + _signal_problems(each, reference, outcome, point, Path(launch.output))


def _tracebacks(text: str) -> list[str]:
    if "Traceback" not in text:
        return []
    named = [line for line in text.splitlines() if re.match(r"[\w.]+(Error|Interrupt)\b", line)]
    return [f"traceback: {named[-1][:150] if named else 'of an exception without a name'}"]


def _exit_code_problems(code: int, allowed: tuple[int, ...], text: str) -> list[str]:
    if code not in allowed:
        return [f"exit code {code} instead of {' or '.join(map(str, allowed))}"]
    # notes may precede the error
    if code == 2 and not text.rstrip("\n").split("\n")[-1].startswith("error: "):
        return [f"code 2 without an error in the last line: {text[-150:]}"]
    return []


def _codes_when_full(fault: Fault, point: Point) -> tuple[int, ...]:
    if is_log(point.path) or fault.channel == "events":
        return (0,) if fault.do == "full" else (0, 2)
    return (0, 2) if _is_optional_write(point) or point.path in RESULTS else (2,)


def _is_optional_write(point: Point) -> bool:
    """Return whether the run does not need the write: a test file, or the text in the lock."""
    return "lock" in point.path or (point.name == "open" and point.path in (".", "checkpoints"))


def _full_disk_problems(outcome: Outcome, point: Point) -> list[str]:
    if (
        outcome.codes[0] == 0
        and not _is_optional_write(point)
        and not re.search(r"[Nn]o space", outcome.outs[0] + outcome.errs[0])
    ):
        return ["the full disk is not mentioned"]
    return []


def _signal_problems(
    each: Trial, reference: ReferenceRun, outcome: Outcome, point: Point, output: Path
) -> list[str]:
    fault, code = each.fault, outcome.codes[each.fault.rank]
    at_once = -15 if fault.do == "term" else -2
    if point.step == 0:  # perhaps before the handlers are installed
        return _exit_code_problems(code, (130, at_once), "")
    if fault.again > 1:
        return _exit_code_problems(code, (0, 130, at_once), "")
    is_at_end = point.step in (-1, reference.last_step)
    found = []
    for one in outcome.codes:
        found += _exit_code_problems(one, (0, 130) if is_at_end else (130,), "")
    if 0 in outcome.codes and len(set(outcome.codes)) > 1:
        found.append(f"exit codes {outcome.codes}")
    # at the end Ctrl-C ends the command at once, without a line; process 1 writes no lines
    acknowledged = is_at_end or "stopping" in outcome.outs[0] + outcome.errs[0]
    if code == 130 and not acknowledged and (fault.rank == 0 or fault.group):
        found.append("the signal is not acknowledged")
    kept = steps(output)
    saved = int(kept[-1].stem.removeprefix("step_")) if kept else 0
    if code != 0 and saved < point.step:
        found.append("steps are lost: no checkpoint of the step at which the signal came")
    return found


def _exit_problems(outcome: Outcome, how: str) -> list[str]:
    found = [f"{how}: hangs: {outcome.hung}"] if outcome.hung else []
    found += [f"{how}: {line}" for line in _tracebacks("\n".join(outcome.errs))]
    if set(outcome.codes) != {0}:
        last = outcome.errs[0].strip().splitlines()[-1:] or ["no line"]
        found.append(f"{how}: exit code {outcome.codes}: {last[0][:150]}")
    return found


def writes(points: tuple[Point, ...]) -> list[int]:
    """Return the numbers of the points that change the folder."""
    return [n for n, point in enumerate(points, start=1) if point.name not in NON_WRITING]
