"""Hostile weights: pickles with code, decompression bombs, forged headers, unusual states."""

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tests.fuzz.mutations import HOSTILE, mutate_bytes


class Runs:
    """Creates the folder `ran` when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("ran",)


def _number(value: int) -> bytes:
    return struct.pack("<Q", value)


PICKLES: dict[str, bytes] = {
    "mkdir": pickle.dumps(Runs()),
    "mkdir, protocol 2": pickle.dumps({"model": Runs()}, 2),
    "mkdir beside weights": pickle.dumps({"model": {"conv1.weight": np.zeros(3)}, "x": Runs()}),
    "mkdir, protocol 5": pickle.dumps([Runs()], 5),
    "system": b"cos\nsystem\n(S'mkdir ran'\ntR.",
    "system by INST": b"(S'mkdir ran'\nios\nsystem\n.",
    "system by OBJ": b"(cos\nsystem\nS'mkdir ran'\no.",
    "exec": b"cbuiltins\nexec\n(S'import os; os.mkdir(\"ran\")'\ntR.",
    "eval, Python 2": b'c__builtin__\neval\n(S\'__import__("os").mkdir("ran")\'\ntR.',
    "dotted name": b"\x80\x04\x8c\x0ctorch.serial\x8c\x12os.mkdir.__call__\x93\x8c\x03ran\x85R.",
    "getattr": b"cbuiltins\ngetattr\n(cos\npath\nS'os'\ntR.",
    "torch.load": b"ctorch\nload\n(S'other.pt'\ntR.",
    "numpy.load": b"cnumpy\nload\n(S'other.npy'\ntR.",
    "numpy object array": pickle.dumps(np.array([Runs()], object)),
    "numpy dtype object": pickle.dumps(np.array([{}, None], object)),
    "numpy text": pickle.dumps({"model": np.array(["a", "bc"])}),
    "numpy record": pickle.dumps(np.zeros(2, [("a", "f4")])),
    "numpy complex": pickle.dumps({"conv1_w": np.zeros(2, np.complex64)}),
    "persistent id": b"Pfoo\n.",
    "persistent id of a tuple": b"\x80\x02(U\x07storageU\x01xU\x010U\x03cpuK\x05tQ.",
    "extension": b"\x82\x01.",
    "BUILD": b"ccollections\nOrderedDict\n)R}S'__class__'\ncos\nsystem\nsb.",
    "deep lists": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "deep marks": b"\x80\x02" + b"(" * 500_000 + b".",
    "deep tuples": b"\x80\x02N" + b"\x85" * 200_000 + b".",
    "bytes of 4 EB": b"\x80\x04\x8e" + _number(2**62) + b"abc.",
    "text of 2 GB": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "frame of 4 EB": b"\x80\x04\x95" + _number(2**62) + b"N.",
    "long of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7f1.",
    "negative long": b"\x80\x02\x8b\xff\xff\xff\xff1.",
    "memo 4 G": b"\x80\x02Nr\xff\xff\xff\xff.",
    "get of nothing": b"\x80\x02h\x05.",
    "pop of nothing": b"\x80\x020.",
    "stop": b".",
    "protocol 255": b"\x80\xffN.",
    "int digits": b"I" + b"9" * 5000 + b"\n.",
    "list": pickle.dumps([1, 2]),
    "number": pickle.dumps(3),
    "text": pickle.dumps("model"),
    "none": pickle.dumps(None),
    "model that is text": pickle.dumps({"model": "x"}),
    "model that is itself": b"\x80\x02}q\x00U\x05modelh\x00s.",
    "state of numbers": pickle.dumps({"conv1.weight": 1, 2: "x"}),
    "names that are no text": pickle.dumps({"model": {1: np.zeros(2), None: np.zeros(1)}}),
    "array cut": pickle.dumps({"conv1_w": np.zeros((64, 3, 7, 7), np.float32)})[:-9000] + b".",
    "Caffe2 of odd shapes": pickle.dumps(
        {"blobs": {"conv1_w": np.zeros(3), "res_conv1_bn_s": np.zeros(0)}}
    ),
    "detectron2 of odd shapes": pickle.dumps(
        {"model": {"stem.conv1.weight": np.zeros(()), "pixel_mean": np.zeros(3)}, "__author__": 3}
    ),
}


def _shared(count: int) -> Any:
    nested: Any = ["x"]
    for _ in range(count):
        nested = [nested] * 10
    return nested


class Fake:
    """Pickles as a call of torch's function that rebuilds a tensor, with arbitrary arguments."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return torch._utils._rebuild_tensor_v2, self.arguments


def saved(value: Any) -> bytes:
    """Return the bytes that torch.save writes."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def states() -> dict[str, Callable[[], Any]]:
    """Return values that torch.save can write but that are no network's state, by name."""
    floats = torch.zeros(4).untyped_storage()
    storage = torch.storage.TypedStorage(wrap_storage=floats, dtype=torch.float32, _internal=True)
    hooks: Any = OrderedDict()
    weight = torch.zeros(64, 3, 7, 7)
    return {
        "code": lambda: {"model": Runs()},
        "code in metadata": lambda: {"model": {}, "metadata": {"config": Runs()}},
        "a tensor": lambda: torch.zeros(3),
        "a list": lambda: [torch.zeros(3)],
        "nothing": dict,
        "empty model": lambda: {"model": {}, "metadata": {}},
        "model of none": lambda: {"model": None, "metadata": {}, "average": 3},
        "average of numbers": lambda: {"model": {"w": weight}, "metadata": {}, "average": {"w": 1}},
        "average that is a list": lambda: {"model": {"w": weight}, "metadata": {}, "average": [1]},
        "metadata of numbers": lambda: {"model": {"w": weight}, "metadata": {"config": 3, 4: 5}},
        "larger than its storage": lambda: {
            "conv1.weight": Fake(storage, 0, (64, 3, 7, 7), (147, 49, 7, 1), False, hooks)
        },
        "negative strides": lambda: {"conv1.weight": Fake(storage, 0, (2,), (-1,), False, hooks)},
        "negative offset": lambda: {"conv1.weight": Fake(storage, -9, (2,), (1,), False, hooks)},
        "overlapping, huge": lambda: {
            "conv1.weight": Fake(storage, 0, (10**6, 10**6), (0, 0), False, hooks)
        },
        "text for a size": lambda: {"conv1.weight": Fake(storage, 0, "x", (1,), False, hooks)},
        "bool": lambda: {"conv1.weight": weight.bool()},
        "int8": lambda: {"conv1.weight": weight.to(torch.int8)},
        "complex": lambda: {"conv1.weight": weight.to(torch.complex64)},
        "float8": lambda: {"conv1.weight": weight.to(torch.float8_e4m3fn)},
        "sparse": lambda: {"conv1.weight": weight.to_sparse()},
        "sparse rows": lambda: {"conv1.weight": torch.eye(3).to_sparse_csr()},
        "meta": lambda: {"conv1.weight": weight.to("meta")},
        "quantised": lambda: {
            "conv1.weight": torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)
        },
        "NaN": lambda: {"conv1.weight": weight * torch.nan},
        "scalars": lambda: {"conv1.weight": torch.tensor(1.0), "fc.weight": torch.tensor(1)},
        "empty tensors": lambda: {"conv1.weight": torch.zeros(0, 3, 7, 7)},
        "names that are no text": lambda: {1: weight, ("a",): weight, None: weight},
        "hostile names": lambda: {"conv1.weight": weight, "\x1b[31m\n": weight, "x" * 5000: weight},
        "prefix alone": lambda: {"module.": weight, "model.": weight},
        "deep names": lambda: {"module." * 500 + "conv1.weight": weight},
        "torchvision of no classes": lambda: {
            "roi_heads.box_predictor.cls_score.bias": torch.zeros(0),
            "conv1.weight": weight,
        },
        "torchvision of a scalar": lambda: {
            "roi_heads.box_predictor.cls_score.bias": torch.tensor(3)
        },
        "torchvision of three, no more": lambda: {
            "roi_heads.box_predictor.cls_score.bias": torch.zeros(3),
            "roi_heads.box_predictor.cls_score.weight": torch.zeros(()),
            "roi_heads.box_predictor.bbox_pred.weight": torch.zeros(7, 2),
        },
        "detectron2 detector": lambda: {
            "model": {
                "backbone.bottom_up.stem.conv1.weight": weight,
                "backbone.bottom_up.stem.conv1.norm.weight": torch.zeros(()),
                "roi_heads.box_predictor.cls_score.bias": torch.zeros(3),
                "roi_heads.box_predictor.cls_score.weight": torch.zeros(3, 8),
                "pixel_mean": torch.tensor([1.0, 2.0, 3.0]),
                "pixel_std": torch.tensor([0.0, 0.0, 0.0]),
            }
        },
        "detectron2, pixel mean of text": lambda: {
            "model": {"stem.conv1.weight": weight, "pixel_mean": torch.tensor([[["1"]] and 1.0])}
        },
        "Caffe2 names": lambda: {
            "conv1_w": weight,
            "res2_0_branch1_w": torch.zeros(()),
            "conv1_b": weight,
        },
        "a module": lambda: torch.nn.Linear(2, 2),
        "shared lists": lambda: {"model": _shared(12), "metadata": {}},
    }


def edit_zip(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Change, drop, rename or compress an entry of torch's zip file; its checksums are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    index = rng.randrange(len(entries))
    if rng.random() < 0.4:
        index = next(i for i, (name, _) in enumerate(entries) if name.endswith("data.pkl"))
    name, content = entries[index]
    action = rng.choice(
        ("change", "change", "change", "drop", "rename", "compress", "zeros", "folder")
    )
    label = f"{name} {action}"
    method = zipfile.ZIP_STORED
    if action == "change" and content:
        content, more = mutate_bytes(content, rng)
        entries[index] = name, content
        label += f": {more}"
    elif action == "drop":
        del entries[index]
    elif action == "rename":
        entries[index] = rng.choice(("../ran", "/ran", "a\nb", "x" * 300, "")), content
    elif action == "compress":
        method = zipfile.ZIP_DEFLATED
    elif action == "zeros":  # 200 MB, compressed to 200 kB
        entries[index] = name, b"\0" * 200_000_000
        method = zipfile.ZIP_DEFLATED
    elif action == "folder":
        entries = [(f"deeper/{each}", value) for each, value in entries]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method, compresslevel=1) as archive:
        for each, value in entries:
            archive.writestr(zipfile.ZipInfo(each), value, method)
    return file.getvalue(), label


def safetensors_file(
    header: bytes, data: bytes = b"\0" * 64, *, length: int | None = None
) -> bytes:
    """Return a safetensors file with any header, and any header length."""
    return _number(len(header) if length is None else length) + header + data


def forged_header(rng: random.Random) -> tuple[bytes, str]:
    """Return a safetensors file with a wrong header."""
    entry: dict[str, Any] = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
    plain = json.dumps({"conv1.weight": entry}).encode()
    made: dict[str, bytes] = {
        "empty file": b"",
        "length alone": _number(5),
        "length 0": safetensors_file(b"", b""),
        "length 2**63": safetensors_file(plain, length=2**63),
        "length 2**64 - 1": safetensors_file(plain, length=2**64 - 1),
        "length 4 GB": safetensors_file(plain, length=2**32),
        "length of the file": safetensors_file(plain, length=len(plain) + 64),
        "no data": safetensors_file(plain, b""),
        "more data": safetensors_file(plain, b"\0" * 99),
        "list": safetensors_file(b"[]"),
        "deep": safetensors_file(b'{"a":' * 100_000),
        "no UTF-8": safetensors_file(b'{"\xff\xfe": 1}'),
        "no JSON": safetensors_file(b"\0" * 100),
        "lone surrogate": safetensors_file(plain.replace(b"conv1", b"\\ud800")),
        "control characters": safetensors_file(plain.replace(b"conv1", b"\\u001b[31m\\n")),
        "twice": safetensors_file(plain[:-1] + b"," + plain[1:]),
        "many tensors": safetensors_file(
            json.dumps(
                {str(i): entry | {"shape": [0], "data_offsets": [0, 0]} for i in range(20_000)}
            ).encode(),
            b"",
        ),
        "metadata of numbers": safetensors_file(b'{"__metadata__": {"config": 3}}', b""),
        "metadata alone": safetensors_file(b'{"__metadata__": {"config": "{}"}}', b""),
        "metadata that is text": safetensors_file(b'{"__metadata__": "x"}', b""),
    }
    if rng.random() < 0.5:
        name = rng.choice(sorted(made))
        return made[name], name
    key = rng.choice(sorted(entry))
    values = (
        *HOSTILE,
        "F64",
        "I4",
        "BF16",
        "F8_E4M3",
        "BOOL",
        [2**32, 2**32, 2**32],
        [0, 2**63],
        [64, 0],
    )
    value = rng.choice(values)
    text = json.dumps({"conv1.weight": entry | {key: value}})
    return safetensors_file(text.encode()), f"{key} = {value!r:.60}"
