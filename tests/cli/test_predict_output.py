"""An output folder that has files already: those of the user stay, those of predictions do not."""

import os
import shutil
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from detection.commands import predict
from detection.commands.predict_files import PredictionOptions, predict_files
from detection.commands.predict_formats import FORMATS
from detection.config import DetectionConfig
from detection.inference.image_batches import ReadingOptions
from detection.inference.image_inputs import ImageInput
from detection.predict import ImageResult, Predictor
from engine.errors import InterruptedRunError, UserError
from engine.log import RunLog
from tests.cli.conftest import Call

PARTIAL = "detections.partial.jsonl"
FILES = (
    *("detections.json", "detections.csv", "annotations.json", "classes.txt", "data.yaml"),
    PARTIAL,
)
OPTIONS = ("--device", "cpu", "--output", "out")
ALL = ("--format", ",".join(FORMATS))


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_user_are_not_replaced(
    site: Path, trained: Path, call: Call, name: str
) -> None:
    Path("out").mkdir()
    Path("out", name).write_text('[{"image_id": 1}]')
    outcome = call(predict, trained, "data", *OPTIONS, *ALL)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert f"out/{name}: expected none, or that of an earlier prediction, got" in outcome.err
    assert [path.name for path in Path("out").iterdir()] == [name]
    assert Path("out", name).read_text() == '[{"image_id": 1}]'


def test_images_of_the_user_are_not_drawn_over(site: Path, trained: Path, call: Call) -> None:
    for image in ("data/0.jpg", "data/1.jpg"):  # the second time there are detections
        Path("out").mkdir(exist_ok=True)
        Path("out", Path(image).name).write_bytes(b"of the user")
        assert call(predict, trained, image, *OPTIONS).code == 0
    found = {path.name: path.read_bytes() == b"of the user" for path in Path("out").glob("*.jpg")}
    assert found == {"0.jpg": True, "0_2.jpg": False, "1.jpg": True, "1_2.jpg": False}


def test_files_of_an_earlier_prediction_are_replaced(site: Path, trained: Path, call: Call) -> None:
    assert call(predict, trained, "data/0.jpg", *OPTIONS, *ALL).code == 0
    shutil.rmtree("out/labels")
    Path("out/.labels.partial").mkdir()  # of a command that was killed
    outcome = call(predict, trained, "data", *OPTIONS, *ALL)
    assert outcome.code == 0, outcome.err
    assert "kept" not in outcome.out
    assert not Path("out/.labels.partial").exists()
    assert sorted(path.name for path in Path("out").glob("*.jpg")) == ["0.jpg", "1.jpg", "2.jpg"]
    outcome = call(predict, trained, "data", *OPTIONS, "--format", "csv")
    assert outcome.code == 0, outcome.err
    for name in ("data.yaml", "classes.txt", "labels", "annotations.json"):
        assert f"out/{name}: kept; it is not of this prediction" in outcome.out


def test_labels_have_the_names_of_images_whatever_else_is_there(
    site: Path, trained: Path, call: Call
) -> None:
    Path("out").mkdir()
    Path("out/0.jpg").write_bytes(b"of the user")
    Path("labels").mkdir()
    Path("out/labels").symlink_to(Path("labels").absolute())  # empty
    assert call(predict, trained, "data/0.jpg", *OPTIONS, "--format", "yolo").code == 0
    assert [path.name for path in Path("out/labels").iterdir()] == ["0.txt"]
    assert Path("out/0_2.jpg").exists()


def test_a_file_in_place_of_a_folder(site: Path, trained: Path, call: Call) -> None:
    Path("out").mkdir()
    Path("out/labels").write_text("of the user")
    outcome = call(predict, trained, "data/0.jpg", *OPTIONS, "--format", "yolo")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "out/labels: expected a folder, got a file" in outcome.err
    assert call(predict, trained, "data/0.jpg", *OPTIONS, "--format", "csv").code == 0


def test_other_labels_are_noticed_when_a_job_is_resumed(
    site: Path, trained: Path, call: Call
) -> None:
    assert call(predict, trained, "data/0.jpg", *OPTIONS, "--format", "yolo").code == 0
    Path("out/detections.json.partial").symlink_to("/dev/full")
    assert call(predict, trained, "data/1.jpg", *OPTIONS).code == 2
    Path("out/detections.json.partial").unlink(missing_ok=True)
    resume = (trained, "data/1.jpg", *OPTIONS, "--resume")
    outcome = call(predict, *resume, "--format", "yolo")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "out/labels: expected no files of an earlier prediction, got some" in outcome.err
    assert call(predict, *resume).code == 0


class Interrupted(Predictor):
    """Gives an error for each image, and gets a signal during the first."""

    class_names, category_ids, config = ("cow",), (4,), DetectionConfig()

    def __init__(self) -> None:
        self.begun = 0

    def results(
        self, images: Iterable[ImageInput], options: ReadingOptions
    ) -> Iterator[list[ImageResult]]:
        for index, image in enumerate(images):
            self.begun += 1
            os.kill(os.getpid(), signal.SIGTERM)
            yield [ImageResult(index, str(image), error=UserError("bad"))]


def test_no_batch_is_begun_after_a_signal(tmp_path: Path) -> None:
    predictor, log = Interrupted(), RunLog(None, is_main=True)
    paths, options = [f"{number}.jpg" for number in range(9)], PredictionOptions()
    with pytest.raises(InterruptedRunError, match="interrupted after 1 of 9 images"):
        predict_files(predictor, paths, tmp_path, options=options, log=log)
    assert predictor.begun == 1
