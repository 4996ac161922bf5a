"""End of a run on the toy task: failed evaluations, export, divergence, resume."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint import load_checkpoint, read_safetensors
from engine.errors import DivergedError, EvaluationError, InterruptedRunError, UserError
from engine.schema import OptimConfig, RunConfig, ScheduleConfig
from engine.trainer import fit
from tests.engine.test_trainer import config, lines, weights
from tests.engine.toy import ToyBatch, ToyData, ToyEvaluator, ToyTask


def newest(output: Path) -> dict[str, Any]:
    return load_checkpoint(max((output / "checkpoints").glob("step_*.pt")))


class BadValidation(ToyTask):
    """A task that raises `fault` in the evaluations with the given numbers, from 0."""

    def __init__(self, faults: Sequence[int], fault: Exception) -> None:
        super().__init__()
        self.faults, self.fault = faults, fault

    def predict(self, batch: ToyBatch) -> list[float]:
        """Predict, or fail."""
        if len(self.final_flags) - 1 in self.faults:
            raise self.fault
        return super().predict(batch)


BAD_IMAGE = UserError("val/7.jpg: expected an image, got text")


@pytest.mark.parametrize(
    "fault", [BAD_IMAGE, OSError(5, "Input/output error"), MemoryError()], ids=lambda f: type(f)
)
def test_failed_evaluation_does_not_end_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: Exception
) -> None:
    settings = config(eval_every=4, checkpoint_every=4)
    fit(BadValidation([0, 1], fault), settings, output=tmp_path / "run")
    fit(ToyTask(), settings, output=tmp_path / "whole")
    torch.testing.assert_close(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    output = capsys.readouterr().out
    assert "evaluation at step 4 failed, training continues (1 failed so far): " in output
    assert "(2 failed so far)" in output
    assert str(fault).splitlines()[-1:] == [] or str(fault) in output
    assert "2 evaluations failed" in output


def test_failed_evaluation_is_repeated_by_a_resumed_run(tmp_path: Path) -> None:
    settings = config(eval_every=4, checkpoint_every=4)
    with pytest.raises(EvaluationError, match=r"val/7\.jpg"):
        fit(BadValidation([2], BAD_IMAGE), settings, output=tmp_path)
    assert newest(tmp_path)["progress"]["step"] == 12
    task = ToyTask()
    fit(task, settings, output=tmp_path, resume=True)
    assert task.final_flags == [True]
    assert [line["step"] for line in lines(tmp_path, "eval")] == [4, 8, 12]


def test_bug_in_the_last_evaluation_keeps_its_traceback(tmp_path: Path) -> None:
    bug = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError, match="a bug"):
        fit(BadValidation([0], bug), config(), output=tmp_path)
    assert newest(tmp_path)["progress"]["step"] == 12


class NanScore(ToyTask):
    """A task whose score is NaN."""

    def evaluator(self, *, final: bool = True) -> ToyEvaluator:
        """Return an evaluator with a NaN score."""

        class Evaluator(ToyEvaluator):
            def score(self, rows: Sequence[tuple[int, float]]) -> float:
                return math.nan

        return Evaluator()


def test_nan_score_is_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop = config(eval_every=2, log_every=1, patience=2).loop
    schedule = ScheduleConfig(kind="plateau", plateau_evaluations=1)
    settings = config().model_copy(update={"loop": loop, "schedule": schedule})
    fit(NanScore(), settings, output=tmp_path)
    assert {line["lr"] for line in lines(tmp_path, "train")} == {0.05}
    assert len(lines(tmp_path, "train")) == 12
    assert not (tmp_path / "checkpoints" / "best.pt").exists()
    assert "score is NaN: learning rate, patience and best.pt" in capsys.readouterr().out


class GetsWorse(ToyTask):
    """A task whose second evaluation is the best one."""

    scores = (-3.0, -1.0, -2.0, -2.0)

    def evaluator(self, *, final: bool = True) -> ToyEvaluator:
        """Return an evaluator with a fixed score per evaluation."""
        super().evaluator(final=final)
        score = self.scores[min(len(self.final_flags), len(self.scores)) - 1]

        class Evaluator(ToyEvaluator):
            def score(self, rows: Sequence[tuple[int, float]]) -> float:
                return score

        return Evaluator()


@pytest.mark.parametrize(("export", "step"), [("best", 8), ("last", 12)])
def test_best_weights_are_exported_unless_configured_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], export: str, step: int
) -> None:
    fit(GetsWorse(), config(eval_every=4, checkpoint_every=4, export=export), output=tmp_path)
    found, metadata = read_safetensors(tmp_path / "model.safetensors")
    assert (metadata["weights_step"], metadata["run_step"]) == (str(step), "12")
    name = "best.pt" if export == "best" else "step_00000012.pt"
    expected = load_checkpoint(tmp_path / "checkpoints" / name)["model"]
    torch.testing.assert_close(found, dict(expected), rtol=0, atol=0)
    assert [line["step"] for line in lines(tmp_path, "final")] == [step]
    output = capsys.readouterr().out
    assert "last score -2.0000, best -1.0000 at step 8" in output
    assert f"model.safetensors: weights of step {step}" in output


def test_best_checkpoint_of_another_step_is_not_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(GetsWorse(), config(eval_every=4, checkpoint_every=4), output=tmp_path)
    (tmp_path / "model.safetensors").unlink()
    newest_path = tmp_path / "checkpoints" / "step_00000012.pt"
    (tmp_path / "checkpoints" / "best.pt").write_bytes(newest_path.read_bytes())
    fit(GetsWorse(), config(eval_every=4, checkpoint_every=4), output=tmp_path, resume=True)
    assert "best.pt is missing or not of the best step 8" in capsys.readouterr().out
    assert read_safetensors(tmp_path / "model.safetensors")[1]["weights_step"] == "12"


@pytest.mark.parametrize("loop", [{}, {"eval_every": 4, "patience": 1}], ids=["end", "patience"])
def test_resuming_a_finished_run_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], loop: dict[str, Any]
) -> None:
    first = fit(GetsWorse(), config(**loop), output=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    task = GetsWorse()
    again = fit(task, config(**loop), output=tmp_path, resume=True)
    assert task.final_flags == []
    assert again["score"] == first["score"]
    assert "already finished at step 12" in capsys.readouterr().out
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


class Exploding(ToyTask):
    """A task whose weights overflow in the seventh update, although the gradient is finite."""

    def losses(self, batch: ToyBatch) -> dict[str, torch.Tensor]:
        """Return losses that are small for the high rate, except at one step."""
        self.seen = getattr(self, "seen", 0) + 1
        if self.seen == 7:
            return {"square": self.model(batch.inputs).sum() * 1e18}
        return {name: 1e-29 * value for name, value in super().losses(batch).items()}


def exploding(**loop: Any) -> RunConfig:
    settings = config(checkpoint_every=1, keep_checkpoints=2, **loop)
    return settings.model_copy(update={"optim": OptimConfig(lr=1e25, weight_decay=0)})


def test_non_finite_weights_are_neither_saved_nor_exported(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"weights not finite at step 7: the newest"):
        fit(Exploding(), exploding(), output=tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    state = newest(tmp_path)["model"]
    assert all(value.isfinite().all() for value in state.values())


def test_non_finite_steps_keep_earlier_checkpoints(tmp_path: Path) -> None:
    task = ToyTask(ToyData(8, poison=range(8)))
    healthy = ToyTask(ToyData(8))
    fit(healthy, config(max_steps=3, checkpoint_every=1), output=tmp_path)
    with pytest.raises(DivergedError, match="10 non-finite steps in a row"):
        fit(task, config(max_steps=40, checkpoint_every=1), output=tmp_path, resume=True)
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*.pt"))
    assert names == ["step_00000002.pt", "step_00000003.pt"]


class Unreadable(ToyData):
    """Data with a row that cannot be read, in the middle of training."""

    def load(self, index: int, seed: int, batch_shape: None = None) -> tuple[int, torch.Tensor]:
        """Read a row; fail at the 25th."""
        self.reads = getattr(self, "reads", 0) + 1
        if self.reads == 25:
            raise UserError("25.jpg: expected an image, got text")
        return super().load(index, seed)


def test_unreadable_row_ends_a_run_after_saving(tmp_path: Path) -> None:
    settings = config(checkpoint_every=1000)
    with pytest.raises(UserError, match=r"25\.jpg: .* stopped at step 6, .*--resume") as caught:
        fit(ToyTask(Unreadable()), settings, output=tmp_path / "cut")
    assert "\n" not in str(caught.value)
    fit(ToyTask(), settings, output=tmp_path / "cut", resume=True)
    fit(ToyTask(), settings, output=tmp_path / "whole")
    torch.testing.assert_close(
        weights(tmp_path / "cut"), weights(tmp_path / "whole"), rtol=0, atol=0
    )


def test_auto_resume_needs_a_checkpoint_of_the_same_config(tmp_path: Path) -> None:
    settings = config(checkpoint_every=1000)
    with pytest.raises(UserError, match=r"25\.jpg"):
        fit(ToyTask(Unreadable()), settings, output=tmp_path / "cut", auto_resume=True)
    fit(ToyTask(), settings, output=tmp_path / "cut", auto_resume=True, replace=True)
    fit(ToyTask(), settings, output=tmp_path / "whole", auto_resume=True, replace=True)
    torch.testing.assert_close(
        weights(tmp_path / "cut"), weights(tmp_path / "whole"), rtol=0, atol=0
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]
    with pytest.raises(UserError, match=r"holds a run of another config \(optim.lr: 0.05 -> 0.1\)"):
        fit(
            ToyTask(),
            config(lr=0.1, checkpoint_every=1000),
            output=tmp_path / "cut",
            auto_resume=True,
            replace=True,
        )


def test_interrupted_last_step_is_evaluated_when_resumed(tmp_path: Path) -> None:
    from tests.engine.test_trainer import InterruptedAt

    settings = config(max_steps=6, eval_every=0)
    with pytest.raises(InterruptedRunError, match="at step 6"):
        fit(ToyTask(InterruptedAt(6)), settings, output=tmp_path)
    task = ToyTask()
    fit(task, settings, output=tmp_path, resume=True)
    assert task.final_flags == [True]
    assert [line["step"] for line in lines(tmp_path, "eval")] == [6]


def test_bad_rows_are_logged_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(ToyTask(ToyData(8, bad=[2])), config(max_steps=12, log_every=12), output=tmp_path)
    assert capsys.readouterr().out.count("row 2 is bad") == 1
    assert lines(tmp_path, "train")[0]["images_skipped"] > 1


@pytest.mark.parametrize("step", [4, 5])
def test_log_of_a_resumed_run_equals_that_of_an_uninterrupted_one(
    tmp_path: Path, step: int
) -> None:
    from tests.engine.test_trainer import InterruptedAt

    settings = config(log_every=3, checkpoint_every=100)
    fit(ToyTask(), settings, output=tmp_path / "whole")
    with pytest.raises(InterruptedRunError):
        fit(ToyTask(InterruptedAt(step)), settings, output=tmp_path / "cut")
    fit(ToyTask(), settings, output=tmp_path / "cut", resume=True)
    names = ("step", "loss", "square", "penalty", "grad_norm", "lr")
    found, whole = (
        [[line[name] for name in names] for line in lines(tmp_path / run, "train")]
        for run in ("cut", "whole")
    )
    assert found == whole
