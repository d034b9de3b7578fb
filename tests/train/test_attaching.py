"""Other people's networks and data in a notebook: the right layer is found, what cannot work says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import misfire_train
from misfire_runtime.errors import ConfigError
from misfire_train import attach
from misfire_train.attaching import find_last_layer
from misfire_train.data import load_dataset
from misfire_train.signals import Probe, ScoredModel
from misfire_train.tasks import custom_task


class Lane(nn.Module):
    """torchvision's layout: a head for the answer, and an auxiliary one that is declared last."""

    def __init__(self, *, as_dict: bool = False, softmax: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.b1 = nn.Conv2d(3, 8, 3, padding=1)
        self.classifier = nn.Conv2d(8, 3, 1)
        self.aux_classifier = nn.Conv2d(8, 3, 1)
        self.as_dict, self.softmax = as_dict, softmax

    def forward(self, image: Tensor) -> Any:
        out = self.classifier(torch.relu(self.b1(image)))
        if self.softmax:
            out = out.softmax(1)
        return {"out": out} if self.as_dict else out


class Early(nn.Module):
    """A linear layer that is used first and declared last."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(4, 3)
        self.pre = nn.Linear(48, 4)

    def forward(self, image: Tensor) -> Tensor:
        made: Tensor = self.head(torch.relu(self.pre(image.flatten(1))))
        return made


def images(count: int, *, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def masks(count: int) -> Tensor:
    return torch.randint(0, 3, (count, 8, 8), generator=torch.Generator().manual_seed(1))


def labelled(count: int, *, seed: int, size: int = 4) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, 3, (count,), generator=torch.Generator().manual_seed(seed))
    return images(count, size=size, seed=seed), labels


def test_the_last_layer_is_the_one_that_gives_the_answer_and_not_the_last_declared() -> None:
    assert find_last_layer(Lane(), images(2)) == "classifier"
    assert find_last_layer(Early(), images(2, size=4)) == "head"
    assert find_last_layer(Lane(as_dict=True), images(2), output="out") == "classifier"
    with pytest.raises(ConfigError, match="no Linear and no 1x1 convolution gives the model's answer"):
        find_last_layer(Lane(softmax=True), images(2))
    with pytest.raises(ConfigError, match="if it is a softmax or sigmoid, return the tensor before that"):
        find_last_layer(Lane(softmax=True), images(2))
    attached = attach(Early(), layers=[], steps=3)
    attached.fit(train=labelled(40, seed=1), holdout=labelled(40, seed=2))
    assert attached.probe.last_layer == "head"


def test_an_auxiliary_head_named_as_the_last_layer_is_told_to_be_silent() -> None:
    probe = Probe(Lane(), last_layer="aux_classifier")
    with pytest.raises(ConfigError, match="'aux_classifier' is not called"):
        probe(images(2))


def test_a_model_that_gives_a_dict_says_which_outputs_there_are_or_takes_one() -> None:
    attached = attach(Lane(as_dict=True), layers="b1", task="segmentation", steps=3)
    parts = {"train": (images(24), masks(24)), "holdout": (images(24, seed=1), masks(24))}
    with pytest.raises(ConfigError, match=r"a dict of out, which is no tensor: name the answer with output="):
        attached.fit(**parts)
    attached = attach(Lane(as_dict=True), layers="b1", task="segmentation", steps=3, output="out")
    attached.fit(**parts)
    assert attached(images(5)).shape == (5,) and attached.probe.last_layer == "classifier"
    assert "segmentation" in attached.scored_model()(images(2))
    with pytest.raises(ConfigError, match="one tensor, so there is no output 'out'"):
        Probe(Lane(), last_layer="classifier", output="out")(images(2))


class Pairs(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """A Dataset of one's own: items by number, as (image, label) or as a dict."""

    def __init__(self, given: tuple[Tensor, Tensor], *, as_dict: bool = False) -> None:
        self.images, self.labels = given
        self.as_dict = as_dict

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        image, label = self.images[index], int(self.labels[index])
        return {"image": image, "label": label} if self.as_dict else (image, label)


class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    def __init__(self, given: tuple[Tensor, Tensor]) -> None:
        self.given = given

    def __iter__(self) -> Any:
        return zip(*self.given, strict=True)


FORMS: dict[str, Any] = {
    "tensor dataset": torch.utils.data.TensorDataset,
    "subset": lambda x, y: torch.utils.data.Subset(Pairs((x, y)), range(len(y))),
    "own dataset": lambda x, y: Pairs((x, y)),
    "dataset of dicts": lambda x, y: Pairs((x, y), as_dict=True),
    "stream": lambda x, y: Stream((x, y)),
    "loader": lambda x, y: torch.utils.data.DataLoader(Pairs((x, y)), batch_size=7),
    "loader of dicts": lambda x, y: torch.utils.data.DataLoader(Pairs((x, y), as_dict=True), batch_size=7),
    "numpy": lambda x, y: (x.numpy(), y.numpy()),
    "doubles": lambda x, y: (x.numpy().astype(np.float64), y.tolist()),
    "lists": lambda x, y: (list(x), y.tolist()),
    "lists of arrays": lambda x, y: ([image.numpy() for image in x], [int(label) for label in y]),
    "pairs": lambda x, y: [(image, int(label)) for image, label in zip(x, y, strict=True)],
}


@pytest.mark.parametrize("form", list(FORMS))
def test_fit_takes_labelled_images_in_every_form_a_notebook_has_them(form: str) -> None:
    make = FORMS[form]
    wanted = attach(Early(), layers=[], steps=3)
    wanted.fit(train=labelled(30, seed=1), holdout=labelled(30, seed=2))
    found = attach(Early(), layers=[], steps=3)
    report = found.fit(train=make(*labelled(30, seed=1)), holdout=make(*labelled(30, seed=2)))
    assert report.samples == 30
    some = images(5, size=4)
    assert torch.allclose(found(some), wanted(some), atol=1e-6)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (([torch.zeros(3, 4, 4), torch.zeros(3, 5, 4)], [0, 1]), r"several sizes \(\[3, 4, 4\], \[3, 5, 4\]"),
        ("frames/train", "train is str; expected"),
        ([{"picture": 1, "label": 2}], "items of train have picture, label"),
        ([torch.zeros(3, 4, 4)] * 3, "train is list; expected"),
        (torch.utils.data.TensorDataset(torch.zeros(3, 3, 4, 4)), "items of train are tuple"),
    ],
)
def test_what_fit_cannot_take_is_named_with_the_way_out(given: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        attach(Early(), layers=[], steps=3).fit(train=given, holdout=labelled(30, seed=2))


def test_a_dataset_that_does_not_fit_into_memory_is_refused_before_it_is_read() -> None:
    class Huge(Pairs):
        def __len__(self) -> int:
            return 10**9

    with pytest.raises(ConfigError, match=r"takes 192 GB.*Subset"):
        attach(Early(), layers=[], steps=3).fit(train=Huge(labelled(2, seed=1)), holdout=labelled(30, seed=2))


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_tensors_may_have_any_number_of_channels(channels: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))

    def part(seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(40, channels, 4, 4, generator=generator)
        return x, torch.randint(0, 3, (40,), generator=generator)

    attached = attach(model, layers=["1"], steps=3)
    attached.fit(train=part(1), holdout=part(2))
    assert attached(part(3)[0]).shape == (40,)


class OneMap(nn.Module):
    """A road network: one map, perhaps of sigmoids, perhaps without its axis of one, perhaps scaled up."""

    def __init__(self, *, sigmoid: bool = False, squeezed: bool = False, resized: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 1, 1)
        self.aux = nn.Conv2d(4, 1, 1)
        self.sigmoid, self.squeezed, self.resized = sigmoid, squeezed, resized

    def forward(self, image: Tensor) -> Tensor:
        out = 4 * self.head(torch.relu(self.body(image))) / 4
        if self.resized:
            out = nn.functional.interpolate(out, scale_factor=2, mode="bilinear")
        out = torch.sigmoid(out) if self.sigmoid else out
        return out[:, 0] if self.squeezed else out


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("squeezed", [False, True])
@pytest.mark.parametrize("resized", [False, True])
def test_one_map_is_read_as_two_classes(sigmoid: bool, squeezed: bool, resized: bool) -> None:
    model = OneMap(sigmoid=sigmoid, squeezed=squeezed, resized=resized)
    side = 16 if resized else 8
    generator = torch.Generator().manual_seed(0)
    targets = [torch.randint(0, 2, (24, side, side), generator=generator) for _ in range(2)]
    attached = attach(model, layers=["body"], task="segmentation", steps=3)
    attached.fit(train=(images(24), targets[0]), holdout=(images(24, seed=1), targets[1]))
    assert attached.probe.last_layer == "head"
    x = images(3, seed=5)
    with torch.no_grad():
        z = OneMap(resized=resized).eval()(x)
        signals = attached.probe(x)
        assert torch.allclose(signals.outputs.softmax(1)[:, 1:], torch.sigmoid(z), atol=1e-5)
        assert signals.weight is not None and signals.bias is not None
        made = torch.einsum("nchw,kc->nkhw", signals.last_input, signals.weight) + signals.bias[:, None, None]
        if not resized:
            assert torch.allclose(made, signals.outputs, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x: (x * 40 + 128).to(torch.uint8), r"images are torch\.uint8, .* normalise"),
        (lambda x: x.half(), r"images are torch\.float16, the network's weights torch\.float32"),
        (lambda x: x.permute(0, 2, 3, 1), r"looks like \[N,H,W,C\].*permute"),
    ],
)
def test_images_that_the_network_cannot_take_are_refused_in_words(change: Any, text: str) -> None:
    def part(seed: int) -> tuple[Tensor, Tensor]:
        x, y = labelled(30, seed=seed)
        return change(x), y

    attached = attach(Early(), layers=[], steps=3)
    with pytest.raises(ConfigError, match=text):
        attached.fit(train=part(1), holdout=part(2))
    attached.fit(train=labelled(30, seed=1), holdout=labelled(30, seed=2))
    with pytest.raises(ConfigError, match=text):
        attached(part(3)[0])


@pytest.mark.parametrize(
    ("task", "outputs", "text"),
    [
        ("classification", masks(24), r"needs \[N,K\] logits.*is it task='segmentation'"),
        ("regression", masks(24), "is it task='segmentation'"),
    ],
)
def test_a_wrong_task_is_told_by_the_shapes(task: str, outputs: Tensor, text: str) -> None:
    attached = attach(Lane(), layers=["b1"], task=task, steps=3)
    with pytest.raises(ConfigError, match=text):
        attached.fit(train=(images(24), outputs), holdout=(images(24, seed=1), outputs))


def test_labels_and_answers_that_no_classifier_has_are_refused() -> None:
    x, y = labelled(30, seed=2)
    many = torch.zeros(30, 3)
    attached = attach(Early(), layers=[], steps=3)
    with pytest.raises(ConfigError, match="task='multi-label'"):
        attached.fit(train=labelled(30, seed=1), holdout=(x, many))
    with pytest.raises(ConfigError, match=r"labels go from 3 to 5 .* 3 outputs"):
        attached.fit(train=labelled(30, seed=1), holdout=(x, y % 3 + 3))
    surely = nn.Sequential(nn.Flatten(), nn.Linear(48, 3), nn.Softmax(1))
    with pytest.raises(ConfigError, match="gives probabilities"):
        attach(surely, layers=[], last_layer="1", steps=3).fit(train=labelled(30, seed=1), holdout=(x, y))


def test_held_out_images_that_were_trained_on_are_noticed() -> None:
    attached = attach(Early(), layers=[], steps=3)
    both = labelled(40, seed=1)
    with pytest.raises(ConfigError, match="40 of 40 held-out images are among the training images"):
        attached.fit(train=both, holdout=both)
    with pytest.raises(ConfigError, match="20 of 20"):
        attached.fit(train=both, holdout=(both[0][:20].clone(), both[1][:20]))
    digits = load_dataset("digits")
    with pytest.raises(ConfigError, match="30 of 30"):
        attached.fit(
            train=digits.train.take(range(60)), holdout=digits.train.take(range(30)), contract=digits.contract
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_in_half_precision_gets_a_head_in_full_precision(dtype: torch.dtype) -> None:
    network = Early().to(dtype)

    def part(seed: int) -> tuple[Tensor, Tensor]:
        x, y = labelled(40, seed=seed)
        return x.to(dtype), y

    attached = attach(network, layers=[], steps=3)
    attached.fit(train=part(1), holdout=part(2))
    values = attached(part(3)[0])
    assert values.dtype == torch.float32 and bool(torch.isfinite(values).all())
    scored = attached.scored_model()(part(3)[0])
    assert scored["score.learning_loss_pp"].dtype == torch.float32 and scored["logits"].dtype == dtype


def test_wrappers_prefixes_may_be_left_out_and_wrong_names_get_near_ones() -> None:
    wrapped = nn.DataParallel(Lane())
    assert Probe(wrapped, last_layer="classifier", features="b1").feature_names == ("module.b1",)
    deep = nn.Sequential(*[nn.Linear(4, 4) for _ in range(40)])
    with pytest.raises(ValueError, match=r"no layer '39x'; did you mean 39.*and 28 more") as caught:
        Probe(deep, last_layer="39x")
    assert len(str(caught.value)) < 200


def test_the_class_of_an_attached_network_has_a_public_name() -> None:
    assert isinstance(attach(Early(), layers=[]), misfire_train.Attached)


def test_a_custom_task_is_not_measured_by_the_built_in_shapes() -> None:
    task = custom_task(lambda out, true: (out - true).abs().mean(1), failure_threshold=0.5)
    attached = attach(Early(), layers=[], task=task, steps=3)
    x, _ = labelled(40, seed=1)
    attached.fit(train=(x[:15], torch.zeros(15, 3)), holdout=(x[15:], torch.zeros(25, 3)))
    assert isinstance(attached.scored_model(), ScoredModel)
