"""Training loop on the toy task: run folder, stop, resume."""

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint import CheckpointFolder, load_checkpoint, read_safetensors
from engine.errors import DivergedError, InterruptedRunError, UserError
from engine.evaluate import evaluate
from engine.schema import LoaderConfig, LoopConfig, OptimConfig, RunConfig, ScheduleConfig
from engine.step import WeightAverage, num_compiled_graphs
from engine.task import Task
from engine.trainer import fit
from tests.engine.toy import ToyBatch, ToyData, ToyTask


def config(*, lr: float = 0.05, clip: float | None = None, **loop: Any) -> RunConfig:
    settings = {"max_steps": 12, "batch_size": 4, "log_every": 3, "checkpoint_every": 5} | loop
    return RunConfig(
        optim=OptimConfig(lr=lr, clip_grad_norm=clip),
        loader=LoaderConfig(workers=0),
        loop=LoopConfig(**settings),
    )


def weights(output: Path) -> dict[str, torch.Tensor]:
    return read_safetensors(output / "model.safetensors")[0]


def lines(output: Path, kind: str) -> list[dict[str, Any]]:
    text = (output / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, text) if line["kind"] == kind]


def test_toy_task_implements_the_protocol() -> None:
    assert isinstance(ToyTask(), Task)


def test_run_folder(tmp_path: Path) -> None:
    metrics = fit(ToyTask(), config(lr=0.02, max_steps=60, eval_every=20), output=tmp_path)
    assert metrics["score"] > -0.05
    assert metrics["num_rows"] == 9
    assert [line["step"] for line in lines(tmp_path, "train")] == list(range(3, 61, 3))
    assert [line["step"] for line in lines(tmp_path, "eval")] == [20, 40, 60]
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"config.yaml", "metrics.jsonl", "checkpoints", "model.safetensors"}
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"step_00000055.pt", "step_00000060.pt", "best.pt"}


@pytest.mark.parametrize(
    ("loop", "expected"),
    [
        ({"eval_every": 4}, [False, False, True]),
        ({"eval_every": 5}, [False, False, True]),
        ({}, [True]),
    ],
    ids=["at the last step", "before it", "never"],
)
def test_evaluator_gets_the_final_flag(
    tmp_path: Path, loop: dict[str, int], expected: list[bool]
) -> None:
    task = ToyTask()
    fit(task, config(**loop), output=tmp_path)
    assert task.final_flags == expected


@pytest.mark.parametrize(
    "loop", [{}, {"ema_decay": 0.9}, {"accumulate": 2}], ids=["plain", "ema", "accumulate"]
)
@pytest.mark.parametrize("cut", [5, 10])
def test_resumed_run_equals_the_uninterrupted_one(
    tmp_path: Path, cut: int, loop: dict[str, Any]
) -> None:
    fit(ToyTask(), config(**loop), output=tmp_path / "whole")
    fit(ToyTask(), config(max_steps=cut, **loop), output=tmp_path / "cut")
    fit(ToyTask(), config(**loop), output=tmp_path / "cut", resume=True)
    torch.testing.assert_close(
        weights(tmp_path / "cut"), weights(tmp_path / "whole"), rtol=0, atol=0
    )


def test_accumulated_parts_equal_the_whole_batch(tmp_path: Path) -> None:
    for parts in (1, 2, 4):
        fit(ToyTask(), config(accumulate=parts), output=tmp_path / str(parts))
    for parts in (2, 4):
        torch.testing.assert_close(weights(tmp_path / str(parts)), weights(tmp_path / "1"))


@pytest.mark.extended
def test_compiled_losses_train_identically(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor], **_options: Any) -> Any:
        graphs.append(graph)
        return graph.forward  # run as traced: a C++ compiler is not needed

    fit(ToyTask(), config(), output=tmp_path / "eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    fit(ToyTask(), config(compile=True), output=tmp_path / "compiled")
    assert num_compiled_graphs() == len(graphs)
    said = capsys.readouterr().out
    assert "loop.compile: 1 graph, compiled in the first step" in said
    assert f"loop.compile: {len(graphs)} graph(s) compiled" in said
    assert len(graphs) == 1
    torch.testing.assert_close(weights(tmp_path / "eager"), weights(tmp_path / "compiled"))


def test_non_finite_step_changes_nothing_and_names_its_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = ToyTask(ToyData(8, poison=[3]))
    fit(task, config(max_steps=8, max_bad_steps=10), output=tmp_path)
    assert all(value.isfinite().all() for value in weights(tmp_path).values())
    output = capsys.readouterr().out.replace("\n", " ")
    assert "not finite" in output
    assert "3" in output.split("images [")[1].split("]")[0]


def test_non_finite_step_does_not_change_batch_norm(tmp_path: Path) -> None:
    task = ToyTask(ToyData(8, poison=[3]))
    task.model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
    task.losses = lambda batch: {"square": task.model(batch.inputs).square().mean()}  # type: ignore[method-assign]
    fit(task, config(max_steps=8, ema_decay=0.9), output=tmp_path)
    assert all(value.isfinite().all() for value in weights(tmp_path).values())
    assert weights(tmp_path)["0.num_batches_tracked"] < 8


def test_ten_non_finite_steps_end_the_run(tmp_path: Path) -> None:
    task = ToyTask(ToyData(8, poison=range(8)))
    with pytest.raises(DivergedError, match="10 non-finite steps in a row, the last at step 10"):
        fit(task, config(max_steps=40), output=tmp_path)


def test_signal_saves_a_checkpoint_and_stops(tmp_path: Path) -> None:
    class Interrupting(ToyData):
        def load(self, index: int, seed: int, batch_shape: None = None) -> tuple[int, torch.Tensor]:
            self.reads = getattr(self, "reads", 0) + 1
            if self.reads == 15:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().load(index, seed)

    with pytest.raises(InterruptedRunError, match="--resume"):
        fit(ToyTask(Interrupting()), config(), output=tmp_path / "cut")
    fit(ToyTask(), config(), output=tmp_path / "cut", resume=True)
    fit(ToyTask(), config(), output=tmp_path / "whole")
    torch.testing.assert_close(
        weights(tmp_path / "cut"), weights(tmp_path / "whole"), rtol=0, atol=0
    )


class InterruptedAt(ToyData):
    """Data that requests a stop while the first row of a step is read."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.left = 4 * (step - 1) + 1

    def load(self, index: int, seed: int, batch_shape: None = None) -> tuple[int, torch.Tensor]:
        """Read a row."""
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().load(index, seed)


@pytest.mark.parametrize("step", [4, 6, 8])
def test_interrupted_run_has_the_log_and_scores_of_an_uninterrupted_one(
    tmp_path: Path, step: int
) -> None:
    settings = config(eval_every=4, log_every=2, patience=9)
    fit(ToyTask(), settings, output=tmp_path / "whole")
    with pytest.raises(InterruptedRunError, match=f"at step {step}"):
        fit(ToyTask(InterruptedAt(step)), settings, output=tmp_path / "cut")
    fit(ToyTask(), settings, output=tmp_path / "cut", resume=True)
    for kind, keys in (("train", ("step", "loss", "lr")), ("eval", ("step", "score"))):
        found, expected = (
            [[line[key] for key in keys] for line in lines(tmp_path / name, kind)]
            for name in ("cut", "whole")
        )
        assert found == expected
    both = [
        load_checkpoint(tmp_path / name / "checkpoints" / "best.pt") for name in ("cut", "whole")
    ]
    assert both[0]["progress"] == both[1]["progress"]


def test_run_that_ends_in_non_finite_steps_exports_nothing(tmp_path: Path) -> None:
    task = ToyTask(ToyData(8, poison=range(8)))
    with pytest.raises(DivergedError, match="the last 3 steps were not finite"):
        fit(task, config(max_steps=3), output=tmp_path)
    assert lines(tmp_path, "train")[0]["loss"] is None
    assert not (tmp_path / "model.safetensors").exists()


def test_patience_stops_early_and_exports_the_best(tmp_path: Path) -> None:
    settings = config(lr=5.0, max_steps=50, eval_every=1, patience=3, checkpoint_every=50)
    fit(ToyTask(), settings, output=tmp_path)
    evaluated = lines(tmp_path, "eval")
    assert len(evaluated) < 50
    best = CheckpointFolder(tmp_path / "checkpoints", keep=2).best()
    assert best is not None
    payload = load_checkpoint(best)
    torch.testing.assert_close(weights(tmp_path), dict(payload["model"]), rtol=0, atol=0)


def test_skipped_images_are_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(ToyTask(ToyData(8, bad=[2])), config(max_steps=4), output=tmp_path)
    assert "row 2 is bad" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"batch_size": 5, "accumulate": 2}, r"loop.batch_size: expected a multiple.*got 5")],
    ids=["batch that cannot be split"],
)
def test_invalid_settings_are_rejected(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        fit(ToyTask(), config(**changes), output=tmp_path)


def test_resume_without_a_checkpoint_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        fit(ToyTask(), config(), output=tmp_path, resume=True)


def test_evaluate_writes_and_returns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = evaluate(ToyTask(), config(), output=tmp_path)
    assert metrics["num_rows"] == 9
    assert metrics["num_skipped"] == 0
    assert (tmp_path / "metrics.json").exists()
    assert "toy table" in capsys.readouterr().out


def test_weight_average_is_updated_and_applied() -> None:
    model = torch.nn.Linear(2, 1)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    average = WeightAverage(model, 0.5)
    with torch.no_grad():
        model.weight += 1
    average.update(model, step=1000, skipped=torch.tensor(False))
    average.update(model, step=1000, skipped=torch.tensor(True))
    torch.testing.assert_close(average.values["weight"], start["weight"] + 0.5)
    with average.applied(model):
        torch.testing.assert_close(model.weight.data, start["weight"] + 0.5)
    torch.testing.assert_close(model.weight.data, start["weight"] + 1)


def test_toy_batch_moves_between_devices() -> None:
    batch = ToyData().collate([ToyData().load(0, 0)])
    assert isinstance(batch.to(torch.device("cpu")), ToyBatch)


class MeasuringTask(ToyTask):
    """A task that also returns a measurement, which is not minimised."""

    def losses(self, batch: ToyBatch) -> dict[str, torch.Tensor]:
        losses = super().losses(batch)
        return losses | {"measured": 100 * losses["square"].detach()}


def test_value_without_gradient_is_logged_and_not_minimised(tmp_path: Path) -> None:
    fit(ToyTask(), config(), output=tmp_path / "plain")
    fit(MeasuringTask(), config(), output=tmp_path / "measured")
    torch.testing.assert_close(weights(tmp_path / "measured"), weights(tmp_path / "plain"))
    for plain, line in zip(
        lines(tmp_path / "plain", "train"), lines(tmp_path / "measured", "train"), strict=True
    ):
        assert line["loss"] == plain["loss"]
        assert line["measured"] == pytest.approx(100 * line["square"])


def on_plateau(steps: int) -> RunConfig:
    """Return a config with evaluations every 2 steps and a rate too low to improve the score."""
    settings = config(max_steps=steps, eval_every=2, log_every=1, checkpoint_every=1)
    schedule = ScheduleConfig(kind="plateau", plateau_evaluations=2, gamma=0.5)
    return settings.model_copy(update={"schedule": schedule})


class StuckTask(ToyTask):
    """A task with constant predictions, so that the first evaluation stays the best one."""

    def predict(self, batch: ToyBatch) -> list[float]:
        return [0.0] * len(batch)


def test_plateau_drops_the_rate_also_after_a_resume(tmp_path: Path) -> None:
    fit(StuckTask(), on_plateau(12), output=tmp_path / "whole")
    rates = [line["lr"] for line in lines(tmp_path / "whole", "train")]
    # evaluations after steps 2 (best), 4, 6 (two without improvement: drop), 8, 10
    assert rates == pytest.approx([0.05] * 6 + [0.025] * 4 + [0.0125] * 2)
    fit(StuckTask(), on_plateau(7), output=tmp_path / "cut")
    fit(StuckTask(), on_plateau(12), output=tmp_path / "cut", resume=True)
    assert [line["lr"] for line in lines(tmp_path / "cut", "train")] == pytest.approx(rates)
    torch.testing.assert_close(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
