"""Run a model that `resdet export` wrote: python run_onnx.py MODEL.onnx IMAGE ...

Needs numpy, onnxruntime and Pillow. Prints a line for each detected object: file, class, score,
and the box x1 y1 x2 y2 in pixels. Classifiers print their five best classes, localizers the box of
each --class NAME.
"""

import argparse
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model")
parser.add_argument("images", nargs="+")
parser.add_argument("--score", type=float, default=0.5, help="minimum score (default: 0.5)")
parser.add_argument(
    "--class", dest="classes", action="append", default=[], metavar="NAME", help="for localizers"
)
arguments = parser.parse_args()

known = ("CUDAExecutionProvider", "CPUExecutionProvider")
providers = [name for name in known if name in onnxruntime.get_available_providers()]
try:
    session = onnxruntime.InferenceSession(arguments.model, providers=providers)
    names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
except Exception as error:  # onnxruntime raises anything
    parser.error(f"{arguments.model}: expected a model of resdet export, got another file: {error}")
outputs = [output.name for output in session.get_outputs()]
localizes = "classes" in [each.name for each in session.get_inputs()]
if localizes != bool(arguments.classes) or set(arguments.classes) - set(names):
    expected = f"names such as {', '.join(names[:5])}" if localizes else "none with this model"
    parser.error(f"--class: expected {expected}, got {', '.join(arguments.classes) or 'none'}")
wanted = [names.index(name) for name in arguments.classes]
batch, height, width, _ = session.get_inputs()[0].shape  # numbers if fixed, else texts

num_bad = 0
for path in arguments.images:
    try:
        opened = ImageOps.exif_transpose(Image.open(path))
        if opened.mode.startswith(("I", "F")):  # convert() would clip them
            raise OSError(f"expected 8 bits a channel, got Pillow's mode {opened.mode}")
        image = opened.convert("RGB")
    except Exception as error:  # Pillow's readers raise anything
        print(f"{path}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        num_bad += 1
        continue
    original_size = image.size
    if isinstance(height, int):  # a file for images of one size
        image = image.resize((width, height))
    factors = np.tile(np.divide(original_size, image.size), 2)  # of boxes, to the original size
    count = batch if isinstance(batch, int) else 1
    inputs = {"images": np.stack([np.asarray(image)] * count)}  # (B, height, width, 3) uint8 RGB
    if localizes:
        inputs["classes"] = np.array([wanted] * count, dtype=np.int64)
    results = dict(zip(outputs, session.run(None, inputs), strict=True))
    if "probabilities" in results:
        probabilities = results["probabilities"][0]
        for label in probabilities.argsort()[::-1][:5]:
            print(f"{path}\t{names[label]}\t{probabilities[label]:.3f}")
        continue
    # of the first image of the batch; results["masks"], if there, are the objects' masks
    boxes, scores = results["boxes"][0] * factors, results["scores"][0]
    labels = wanted if localizes else results["labels"][0]
    for box, score, label in zip(boxes, scores, labels, strict=True):
        if localizes or (label >= 0 and score >= arguments.score):
            print(f"{path}\t{names[label]}\t{score:.3f}\t" + " ".join(f"{x:.1f}" for x in box))
sys.exit(2 if num_bad else 0)
