"""A delta replaces the tensors of a bundle's head and nothing else, and what does not fit is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from typer.testing import CliRunner

from misfire_runtime.bundle import MANIFEST, MODEL, Bundle, Manifest, hash_files, sha256_file, write_manifest
from misfire_runtime.cli import app
from misfire_runtime.delta import Delta, Refitted, write_delta
from misfire_runtime.delta.delta import CONTENT, DELTA, MAX_CONTENT_BYTES
from misfire_runtime.delta.initialisers import find, read
from misfire_runtime.errors import BundleError
from proving_ground.headed_bundle import HEAD, headed_bundle

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return headed_bundle(tmp_path_factory.mktemp("delta") / "base")


def new_tensors(base: Bundle, *, seed: int = 0) -> dict[str, Any]:
    """Other values for every tensor of the head, by initialiser."""
    assert base.manifest.head is not None
    names = base.manifest.head.tensors
    rng = np.random.default_rng(seed)
    return {
        names[key]: (values + rng.normal(0, 0.1, values.shape)).astype(np.float32)
        for key, values in read(base.model_path, names).items()
    }


def answers_of(model: Any, images: Any) -> dict[str, Any]:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images}), strict=True))


def refit(base: Bundle, **changes: Any) -> Refitted:
    """What a head-only round would ship: other tensors, the golden answers that they give, a version."""
    tensors = new_tensors(base)
    model = onnx.load(base.model_path)
    for item in model.graph.initializer:
        if item.name in tensors:
            item.raw_data = tensors[item.name].tobytes()
    golden = np.load(base.path / "golden.npz")["image"]
    answer = answers_of(model.SerializeToString(), golden)[f"score.{HEAD}"]
    manifest = base.manifest.model_copy(update={"version": "1.0.1"})
    whole = Refitted(HEAD, tensors, {f"output.score.{HEAD}": answer}, manifest, {"frames": 40})
    return replace(whole, **changes)


@pytest.fixture(scope="module")
def made(base: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Delta, Bundle]:
    """The delta, and the bundle that the fleet has refitted."""
    folder = tmp_path_factory.mktemp("made")
    delta = write_delta(base, refit(base), out=folder / "delta", bundle_out=folder / "next")
    return delta, Bundle.open(folder / "next")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_delta_makes_the_fleets_bundle_byte_for_byte(
    base: Bundle, made: tuple[Delta, Bundle], tmp_path: Path
) -> None:
    delta, refitted = made
    result = CliRunner().invoke(
        app, ["bundle", "apply-delta", str(base.path), str(delta.path), "--out", str(tmp_path / "next")]
    )
    assert result.exit_code == 0 and "digits@1.0.1" in result.output
    assert files(tmp_path / "next") == files(refitted.path)
    assert delta.bytes < 0.5 * base.model_path.stat().st_size
    # In place, as a vehicle with little room does it.
    shutil.copytree(base.path, tmp_path / "own")
    delta.apply(tmp_path / "own", out=tmp_path / "own")
    assert files(tmp_path / "own") == files(refitted.path)


def test_only_the_heads_initialisers_differ_and_the_network_answers_bit_for_bit(
    base: Bundle, made: tuple[Delta, Bundle]
) -> None:
    _, refitted = made
    before, after = (onnx.load(bundle.model_path) for bundle in (base, refitted))
    assert base.manifest.head is not None
    names = set(base.manifest.head.tensors.values())
    # The same graph as one that onnx itself writes with the new values.
    again = onnx.ModelProto()
    again.CopyFrom(before)
    tensors = new_tensors(base)
    for item in again.graph.initializer:
        if item.name in names:
            item.raw_data = tensors[item.name].tobytes()
    assert again.SerializeToString(deterministic=True) == refitted.model_path.read_bytes()
    for left, right in zip(before.graph.initializer, after.graph.initializer, strict=True):
        assert (left.SerializeToString() != right.SerializeToString()) == (left.name in names), left.name
    images = np.random.default_rng(1).random((5, *np.load(base.path / "golden.npz")["image"].shape[1:]))
    old, new = (answers_of(str(b.model_path), images.astype(np.float32)) for b in (base, refitted))
    for name, values in old.items():
        same = np.array_equal(values, new[name])
        assert same == (name != f"score.{HEAD}"), name


def test_golden_frames_hold_on_the_new_graph(made: tuple[Delta, Bundle]) -> None:
    _, refitted = made
    with np.load(refitted.path / "golden.npz", allow_pickle=False) as golden:
        answers = answers_of(str(refitted.model_path), golden["image"])
        for name, values in answers.items():
            np.testing.assert_allclose(golden[f"output.{name}"], values, rtol=1e-5, atol=1e-6)


def test_a_vehicle_needs_neither_torch_nor_onnx(
    base: Bundle, made: tuple[Delta, Bundle], tmp_path: Path
) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxruntime'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from misfire_runtime.delta import Delta\n"
        "delta, base, out = map(Path, sys.argv[1:])\n"
        "print(Delta.open(delta).apply(base, out=out).manifest.label)\n"
    )
    words = [sys.executable, "-c", code, str(made[0].path), str(base.path), str(tmp_path / "next")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "digits@1.0.1\n"


def test_verify_says_what_a_delta_does_and_whether_it_fits(
    base: Bundle, made: tuple[Delta, Bundle], tmp_path: Path
) -> None:
    delta, refitted = made
    run = CliRunner().invoke
    fits = run(app, ["bundle", "verify", str(delta.path), "--base", str(base.path)])
    assert fits.exit_code == 0 and "digits@1.0.0 -> digits@1.0.1: intact" in fits.output
    other = run(app, ["bundle", "verify", str(delta.path), "--base", str(refitted.path)])
    assert other.exit_code == 1 and "it fits digits@1.0.0 with the graph" in other.output
    said = json.loads(run(app, ["bundle", "verify", str(delta.path), "--json"]).output)
    assert said["intact"] and said["problems"] == []


def rewritten(delta: Delta, folder: Path, change: Callable[[dict[str, Any], bytearray], None]) -> Path:
    """A copy of a delta with other content, whose hashes of its files are right again."""
    shutil.copytree(delta.path, folder)
    about = json.loads((folder / DELTA).read_text())
    content = bytearray(zlib.decompress((folder / CONTENT).read_bytes()))
    change(about, content)
    packed = zlib.compress(bytes(content))
    about["content"] = {"sha256": hashlib.sha256(packed).hexdigest(), "bytes": len(packed)}
    (folder / CONTENT).write_bytes(packed)
    (folder / DELTA).write_text(json.dumps(about))
    return folder


def rehash(about: dict[str, Any], content: bytearray, number: int = 0) -> None:
    """Sets the hash of one tensor to that of its bytes."""
    start = about["manifest_bytes"]
    for place, part in enumerate(about["tensors"]):
        size = 4 * int(np.prod(part["shape"]))
        if place == number:
            part["sha256"] = hashlib.sha256(content[start : start + size]).hexdigest()
        start += size


def flip(about: dict[str, Any], content: bytearray) -> None:
    content[about["manifest_bytes"]] ^= 1


def flip_and_rehash(about: dict[str, Any], content: bytearray) -> None:
    flip(about, content)
    rehash(about, content)


def put_nan(about: dict[str, Any], content: bytearray) -> None:
    start = about["manifest_bytes"]
    content[start : start + 4] = np.array([np.nan], "<f4").tobytes()
    rehash(about, content)


def name_a_weight(about: dict[str, Any], content: bytearray) -> None:
    about["tensors"][0]["name"] = "model.fc.weight"


def reshape(about: dict[str, Any], content: bytearray) -> None:
    about["tensors"][0]["shape"] = [1, *about["tensors"][0]["shape"]]


def claim_less(about: dict[str, Any], content: bytearray) -> None:
    about["tensors"] = about["tensors"][:-1]


def claim_gigabytes(about: dict[str, Any], content: bytearray) -> None:
    about["tensors"][0]["shape"] = [1 << 24, 1 << 24]


def edit_manifest(**changes: Any) -> Callable[[dict[str, Any], bytearray], None]:
    def change(about: dict[str, Any], content: bytearray) -> None:
        manifest = json.loads(content[: about["manifest_bytes"]]) | changes
        text = json.dumps(manifest).encode()
        content[: about["manifest_bytes"]] = text
        about["manifest_bytes"] = len(text)
        about["result"]["manifest"] = hashlib.sha256(text).hexdigest()

    return change


def edit_score(about: dict[str, Any], content: bytearray) -> None:
    manifest = json.loads(content[: about["manifest_bytes"]])
    other = next(score for score in manifest["scores"] if score["name"] != HEAD)
    other["calibration"]["quantiles"]["values"][-1] += 1.0
    edit_manifest(scores=manifest["scores"])(about, content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip, "were altered"),
        (flip_and_rehash, "sha256 differs"),
        (put_nan, "NaN or infinite"),
        (name_a_weight, "'model.fc.weight' is not a tensor of the bundle's head"),
        (reshape, "has the shape"),
        (claim_less, "does not have the"),
        (claim_gigabytes, "more than"),
        (edit_manifest(classes=["a"]), "it would change 'classes'"),
        (edit_manifest(input={"height": 9, "width": 9}), "it would change 'input'"),
        (edit_manifest(head=None), "it would change 'head'"),
        (edit_score, "it would change another score"),
        (edit_manifest(version="one"), "version"),
        (lambda about, _: about.update(score="entropy"), "no head of entropy"),
        (lambda about, _: about.update(schema_version=2), "schema_version"),
        (lambda about, _: about["base"].update(model="0" * 64), "it fits digits@1.0.0 with the graph 000000"),
        (lambda about, _: about["base"].update(manifest="0" * 64), "another manifest"),
        (lambda about, _: about["golden"][0].update(name="output.logits"), "'output.logits'"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_does_not_fit_is_refused_in_one_sentence_and_nothing_is_written(
    base: Bundle, made: tuple[Delta, Bundle], tmp_path: Path, change: Any, message: str
) -> None:
    folder = rewritten(made[0], tmp_path / "delta", change)
    result = CliRunner().invoke(
        app, ["bundle", "apply-delta", str(base.path), str(folder), "--out", str(tmp_path / "next")]
    )
    assert isinstance(result.exception, BundleError)
    assert message in str(result.exception) and "\n" not in str(result.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["delta"]
    assert Bundle.open(base.path).manifest == base.manifest


def test_altered_missing_and_extra_files_are_refused(
    base: Bundle, made: tuple[Delta, Bundle], tmp_path: Path
) -> None:
    for number, (name, data, message) in enumerate(
        [
            (CONTENT, b"\0" * 10, "not what delta.json says"),
            (CONTENT, None, "No such file"),
            (CONTENT, b"\0" * (MAX_CONTENT_BYTES + 1), "larger than"),
            (DELTA, b"{", "delta.json"),
            (DELTA, None, "is this a delta?"),
            ("more.bin", b"x", "more.bin is not part of a delta"),
        ]
    ):
        folder = tmp_path / str(number)
        shutil.copytree(made[0].path, folder)
        if data is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(data)
        with pytest.raises(BundleError, match=message):
            Delta.open(folder).apply(base.path, out=tmp_path / "next")
    assert not (tmp_path / "next").exists()


def test_an_altered_base_and_a_folder_that_is_no_bundle_are_left_alone(
    base: Bundle, made: tuple[Delta, Bundle], tmp_path: Path
) -> None:
    delta, _ = made
    altered = Path(shutil.copytree(base.path, tmp_path / "altered"))
    data = bytearray((altered / MODEL).read_bytes())
    data[-1] ^= 1
    (altered / MODEL).write_bytes(data)
    with pytest.raises(BundleError, match=r"model.onnx is not what the manifest says"):
        delta.apply(altered, out=tmp_path / "next")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        delta.apply(base.path, out=tmp_path / "notes")
    assert files(tmp_path / "notes") == {"a.txt": b"mine"} and not (tmp_path / "next").exists()


def test_the_fleet_does_not_ship_what_a_vehicle_would_refuse(base: Bundle, tmp_path: Path) -> None:
    whole = refit(base)
    first, *_ = whole.tensors
    for changes, message in (
        ({"tensors": {first: np.full_like(whole.tensors[first], np.inf)}}, "NaN or infinite"),
        ({"tensors": {first: whole.tensors[first][None]}}, "has the shape"),
        ({"tensors": {"nobody": whole.tensors[first]}}, "no initialiser 'nobody'"),
        ({"manifest": whole.manifest.model_copy(update={"classes": ("a",)})}, "'classes'"),
    ):
        with pytest.raises(BundleError, match=message):
            write_delta(base, replace(whole, **changes), out=tmp_path / "d", bundle_out=tmp_path / "b")
        assert not list(tmp_path.iterdir())


def test_damaged_graphs_are_refused_by_name(base: Bundle, tmp_path: Path) -> None:
    data = base.model_path.read_bytes()
    rng = np.random.default_rng(0)
    cases = [
        b"",
        b"\x00" * 50,
        b"PK\x03\x04" * 10,
        data[:-7],
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01" + data,
    ]
    cases += [bytes(rng.integers(0, 256, 200, dtype=np.uint8)) for _ in range(50)]
    for number, case in enumerate(cases):
        file = tmp_path / f"{number}.onnx"
        file.write_bytes(case)
        with pytest.raises(BundleError):
            find(file, {"head/center": None})


def test_tensors_that_are_not_raw_bytes_are_not_read(tmp_path: Path) -> None:
    tensor = onnx.helper.make_tensor("head/center", onnx.TensorProto.FLOAT, [2], [1.0, 2.0])
    graph = onnx.helper.make_graph([], "graph", [], [], [tensor])
    file = tmp_path / "model.onnx"
    file.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(BundleError, match=r"'head/center' is not stored as raw bytes"):
        read(file, {"center": "head/center"})


def test_a_bundle_without_a_tunable_head_says_so(
    base: Bundle, made: tuple[Delta, Bundle], tmp_path: Path
) -> None:
    """As an older bundle, or one whose head corrects nothing: the graph may be the same."""
    plain = Path(shutil.copytree(base.path, tmp_path / "plain"))
    (plain / MANIFEST).unlink()
    manifest = Manifest.model_validate(
        base.manifest.model_dump() | {"head": None, "files": hash_files(plain)}
    )
    write_manifest(plain, manifest)

    def fit(about: dict[str, Any], content: bytearray) -> None:
        about["base"]["manifest"] = sha256_file(plain / MANIFEST)

    folder = rewritten(made[0], tmp_path / "delta", fit)
    with pytest.raises(BundleError, match="no head of learning_loss_pp"):
        Delta.open(folder).apply(plain, out=tmp_path / "next")
