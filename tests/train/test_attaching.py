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


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (torch.utils.data.TensorDataset(*labelled(30, seed=1)), r"train is TensorDataset; .*torch\.stack"),
        (
            torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*labelled(30, seed=1))),
            r"DataLoader; .*torch\.cat",
        ),
        ((images(30, size=4).numpy(), np.zeros(30, np.int64)), r"are ndarray; .*torch\.from_numpy"),
        ((list(images(30, size=4)), torch.zeros(30).long()), r"are list; .*torch\.stack"),
    ],
    ids=["dataset", "loader", "numpy", "list"],
)
def test_what_fit_cannot_take_is_named_with_the_way_to_tensors(given: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        attach(Early(), layers=[], steps=3).fit(train=given, holdout=labelled(30, seed=2))


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
    with pytest.raises(ConfigError, match="multi-label"):
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
