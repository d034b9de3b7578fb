"""Lists the named data sets: source, licence, and the checksum of every file.

A file is searched for in `--data`, else in MISFIRE_DATA, else in the user's cache, where `misfire data fetch`
puts it. A file whose checksum differs is refused.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Literal

from misfire_train.errors import DatasetError

State = Literal["present", "missing", "changed"]


@dataclass(frozen=True)
class DataFile:
    """Describes one file of a data set. url: its official address, or empty if it has none."""

    path: str
    sha256: str
    url: str = ""


@dataclass(frozen=True)
class Entry:
    """Describes a data set of the catalogue.

    argument: what readers of folders take after the name and a colon.
    listing: a file beside this one with names and checksums as `sha256sum` writes them, for many files
    that have no address.
    """

    name: str
    task: str
    licence: str
    about: str
    files: tuple[DataFile, ...] = ()
    argument: str = ""
    size_bytes: int = 0
    listing: str = ""

    @property
    def sha256(self) -> str:
        """Returns the checksum of all file names and checksums together."""
        return digest_of((file.path, file.sha256) for file in self.files)


# PyTorch's mirror of the original files.
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_KMNIST = "http://codh.rois.ac.jp/kmnist/dataset/kmnist/"
_COCO = "http://images.cocodataset.org/train2017/"
_UDACITY = "https://raw.githubusercontent.com/udacity/"


def _files(folder: str, base: str, sums: dict[str, str]) -> tuple[DataFile, ...]:
    return tuple(
        DataFile(f"{folder}/{name}", value, base + name if base else "") for name, value in sums.items()
    )


# Both projects have stills of their own, so the project is part of the name.
def _still_url(name: str) -> str:
    """Returns the address of a still, which is stored as PROJECT_NAME (advlane_test1.jpg)."""
    project, _, own = name.partition("_")
    repository = "CarND-Advanced-Lane-Lines" if project == "advlane" else "CarND-LaneLines-P1"
    return f"{_UDACITY}{repository}/master/test_images/{own}"


MNIST_FILES = _files(
    "mnist",
    _MNIST,
    {
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
)
FASHION_FILES = _files(
    "fashion_mnist",
    _FASHION,
    {
        "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
)
KMNIST_FILES = _files(
    "kmnist_test",
    _KMNIST,
    {
        "t10k-images-idx3-ubyte.gz": "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
        "t10k-labels-idx1-ubyte.gz": "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
    },
)
# Without a public address: users copy these files themselves.
LIGHTS_FILES = _files(
    "traffic_lights",
    "",
    {
        "train.npz": "81e16f23d48e8bb36a2668ef8881a621bf002793b1c77af77eb2d08c35bdcd65",
        "test.npz": "cd4076be798acb1c0d1e939137504b0c25aa7a50aa173294b7e8d63e7815a75e",
    },
)
COCO_PHOTOS = _files(
    "coco_pose_ccby/images",
    _COCO,
    {
        "000000000790.jpg": "5deae804561b162ebb827a0cee0c503045733a25d1524188bcd50e7cc128927a",
        "000000129648.jpg": "7783516f50b86d4bfa48471a9df8e88738a24a765a27097f87f5900909d43e38",
        "000000160012.jpg": "b660ce7ce72dcfa459181967524c53f9360318652c0014790da9fa096ccf1ae2",
        "000000165518.jpg": "733bdae7be5bccea44a0e4b6e6f079d9da9439f94d721db53694e3c01eb70f47",
        "000000174375.jpg": "bc548616c06d7953941217be97037e42edc7f9a278f8527b530a170706dfc5ce",
        "000000183709.jpg": "89dabb8b6940b9c08d005d03f0a22573eea72896f8314fbb0d4c128a99c261a1",
        "000000214753.jpg": "cbf50318249d78406eeee4f1e91693acc0f8e05dc9e745632354369caae57777",
        "000000229358.jpg": "2c8d100ab71de8b3ef22f3d0999aec2174bf10a911712e1d7bb3de1e2def6eb7",
        "000000234748.jpg": "a8228ec24afd9649d690defc74bd02bc063674527463104a13839238811f3216",
        "000000256353.jpg": "81aa49e243d8fe3f6475e48ddf641600ae859e210ab9ef8bdc1f83a8229ade28",
        "000000349860.jpg": "f07d8b177d8f2b0a9fa4dd06eaec034e5c52adec952caeb504eb794edf963da7",
        "000000397133.jpg": "09e1d25c75f7879bdaa69c327fece5cabacd53939c8c2ef9e87f1c97a2e478c4",
        "000000433998.jpg": "d595b46a4e05e212de0465276594281f76cfa85ccec9bb4e5065b508cd9ab80b",
        "000000434204.jpg": "b0580bb47eee47184ec9aeef06ff9c7fd9e4b17c1187343069245d3e425e9744",
        "000000442450.jpg": "7f99a494044d71ee00ebb8074d8836012fe97b88a2d3ff40d4bb706cd23d0ecd",
        "000000519208.jpg": "251ea96f960403b82085683813326671034e3dfa5171887bd155fb14528a9534",
    },
)
COCO_POSE = _files(
    "coco_pose_ccby",
    "",
    {
        "person_keypoints.json": "75119e4b919e75f3dfba18f1a91d8de5fc5c5f90399a2f9aeeb14cc2702cac01",
    },
)
_STILL_SUMS = {
    "advlane_straight_lines1.jpg": "c7efc691a0e0100ff3cec664767c52b4840a02c3bce0547e7deb42d4c4562a38",
    "advlane_straight_lines2.jpg": "9c9176034d11c7ca7a8e638e7111987574b138253075185242ad4ef246ef3b02",
    "advlane_test1.jpg": "72a7b89d9c9121d532bb284101e60a554f36ece3550f4cc0b2b5100c8c1df2ce",
    "advlane_test2.jpg": "cb937da5a5196efb990ccad4dda6264f73bfc56e6073b9bab65e51b54c5f0dc4",
    "advlane_test3.jpg": "ea211433a12216c5acca9f7d947f53f54d961d01f38a83515ccaf336fa0c41cb",
    "advlane_test4.jpg": "f4c663fff9a1a0996d8eee57b5160890497384ef318af193ee45d195abe2ee9b",
    "advlane_test5.jpg": "ffb451f69f8ddcad07544566ea022b56aaa21661a839ea6903f662fa8d88f1b6",
    "advlane_test6.jpg": "3e84f4b92014bf27d54a364970dbb9c93ade56fc95bf3735bf0e595c09356c6c",
    "lanelines_solidWhiteCurve.jpg": "f789c3b40646601e61aaee5571b50d1d2615424577c6428b5d085d9ec1986ac3",
    "lanelines_solidWhiteRight.jpg": "205beaa560933d14202ce3f17d8dd6d9eb430ee90154eb8008cea4a0b91b88fe",
    "lanelines_solidYellowCurve.jpg": "0aa00e00772c23ec2726f6dac2b88ca4092cb2db5621869cd155034f34900092",
    "lanelines_solidYellowCurve2.jpg": "40389c58dba72e9deb2612bc83b586abf2300c671a3378482d99fbdefe144557",
    "lanelines_solidYellowLeft.jpg": "0b4186b893df94d642b9f67d8f363ebb9277753b21263309957b649121f1bd6e",
    "lanelines_whiteCarLaneSwitch.jpg": "6482b96813475cc0b92f0bdcb3bbe6ca39411bc8270701ddaf9d5938cc5af8b1",
}
STILLS = tuple(
    DataFile(f"dashcam/stills/{name}", value, _still_url(name)) for name, value in _STILL_SUMS.items()
)
CLIPS = (
    DataFile(
        "dashcam/solidWhiteRight.mp4",
        "2d8e14b46fe89afbc8ad1f718685cf09b83e85a324095031c38186a9f0535417",
        f"{_UDACITY}CarND-LaneLines-P1/master/test_videos/solidWhiteRight.mp4",
    ),
    DataFile(
        "dashcam/vehicle_test_video.mp4",
        "6d809d2bc58d837b2a7c53e6da5c75f4476dac64370c0adc245107b592853aa8",
        f"{_UDACITY}CarND-Vehicle-Detection/master/test_video.mp4",
    ),
)

_ENTRIES = (
    Entry(
        "digits",
        "classification",
        "BSD-3-Clause (scikit-learn); UCI Optical Recognition of Handwritten Digits, CC BY 4.0",
        "1,797 grey 8x8 digits, 10 classes; comes with scikit-learn, needs no download",
    ),
    Entry(
        "mnist",
        "classification",
        "CC BY-SA 3.0 (LeCun, Cortes)",
        "60,000 + 10,000 grey 28x28 digits, 10 classes",
        MNIST_FILES,
        size_bytes=11_594_722,
    ),
    Entry(
        "fashion-mnist",
        "classification",
        "MIT (Zalando SE)",
        "60,000 + 10,000 grey 28x28 articles of clothing, 10 classes",
        FASHION_FILES,
        size_bytes=30_878_645,
    ),
    Entry(
        "kmnist",
        "classification",
        'CC BY-SA 4.0; "KMNIST Dataset" (created by CODH), adapted from "Kuzushiji Dataset" '
        "(NIJL and others), doi:10.20676/00000341",
        "10,000 grey 28x28 characters, test only: input that no digit model has ever seen",
        KMNIST_FILES,
        size_bytes=3_046_256,
    ),
    Entry(
        "traffic-lights",
        "classification",
        "CC BY-SA 4.0",
        "1,187 + 297 RGB crops of traffic lights of varying size: red, yellow (rare), green",
        LIGHTS_FILES,
        size_bytes=1_732_529,
    ),
    Entry(
        "figures",
        "keypoints",
        "rendered here over photos: dash-cam stills MIT (Udacity), COCO photos CC BY 2.0 / CC BY-SA 2.0",
        "articulated figures of 14 joints, rendered over real photographs: made, not photographed",
        STILLS + COCO_PHOTOS,
        size_bytes=4_457_390,
    ),
    Entry(
        "figure-parts",
        "segmentation",
        "as figures",
        "the same figures with masks: background, head, torso, arms, legs; made, not photographed",
        STILLS + COCO_PHOTOS,
        size_bytes=4_457_390,
    ),
    Entry(
        "figure-boxes",
        "regression",
        "as figures",
        "the same figures with the box around their joints, 4 values; made, not photographed",
        STILLS + COCO_PHOTOS,
        size_bytes=4_457_390,
    ),
    Entry(
        "coco-pose-ccby",
        "keypoints",
        "photos CC BY 2.0 / CC BY-SA 2.0 (per image in the JSON), annotations CC BY 4.0",
        "16 COCO photos, 43 persons with 17 keypoints: to try formats, too few to train on",
        COCO_POSE + COCO_PHOTOS,
        size_bytes=2_563_104,
    ),
    Entry(
        "carla-detection",
        "detection",
        "MIT (Carla-Object-Detection-Dataset, Copyright (c) 2019 Daniel)",
        "779 + 249 rendered road scenes 640x380 with boxes of 5 classes; the test half is an unseen town",
        size_bytes=62_579_680,
        listing="carla_detection.sha256",
    ),
    Entry(
        "carla-masks",
        "segmentation",
        "MIT (Carla-Object-Detection-Dataset, Copyright (c) 2019 Daniel)",
        "the same scenes 160x96 with coarse masks, made of the boxes; the test half is an unseen town",
        size_bytes=62_579_680,
        listing="carla_detection.sha256",
    ),
    Entry(
        "street",
        "detection",
        "Apache-2.0 (drawn by misfire)",
        "1,200 + 420 drawn road scenes 160x96 with boxes of cars, trucks and persons; needs no download",
    ),
    Entry(
        "drive-garments",
        "classification",
        "Fashion-MNIST MIT (Zalando SE), photos as figures",
        "Fashion-MNIST before photographs, 22 + 8 drives with a camera, light and weather of their own",
        FASHION_FILES + STILLS + COCO_PHOTOS,
        size_bytes=35_336_035,
    ),
    Entry(
        "drive-lights",
        "classification",
        "CC BY-SA 4.0",
        "the traffic lights as 22 + 8 drives with a camera, light and weather of their own",
        LIGHTS_FILES,
        size_bytes=1_732_529,
    ),
    *(
        Entry(
            f"drive-{kind}",
            task,
            "as figures",
            f"figures 64x64 with {label}, 22 + 8 drives with a camera, light, photograph and weather each",
            STILLS + COCO_PHOTOS,
            size_bytes=4_457_390,
        )
        for kind, task, label in (
            ("figures", "keypoints", "14 joints"),
            ("parts", "segmentation", "masks of body parts"),
            ("boxes", "regression", "the box around their joints"),
        )
    ),
    Entry(
        "dashcam",
        "none",
        "MIT (Udacity)",
        "two dash-cam clips and 14 stills without labels: sources for `misfire run`",
        CLIPS + STILLS,
        size_bytes=5_337_437,
    ),
    Entry(
        "image-folder", "classification", "yours", "PATH/[train|test/]CLASS/[GROUP/]image", argument="PATH"
    ),
    Entry("coco-keypoints", "keypoints", "yours", "a COCO keypoint JSON beside its images", argument="PATH"),
    Entry("masks", "segmentation", "yours", "PATH/images and PATH/masks, Cityscapes-like", argument="PATH"),
    Entry("csv-regression", "regression", "yours", "a CSV of image path and values", argument="PATH"),
    Entry("csv-classes", "classification", "yours", "a CSV of image path and class name", argument="PATH"),
    Entry("csv-labels", "multi-label", "yours", "a CSV of image path and labels, 0 or 1", argument="PATH"),
    Entry("coco-boxes", "detection", "yours", "COCO instances JSON beside its images", argument="PATH"),
    Entry("yolo", "detection", "yours", "a data.yaml, images and labels in text files", argument="PATH"),
    Entry("voc", "detection", "yours", "Annotations, JPEGImages, ImageSets/Main", argument="PATH"),
    Entry("kitti", "detection", "yours", "training/image_2 and training/label_2", argument="PATH"),
)


def entries() -> dict[str, Entry]:
    """Returns the catalogue by name, in the order of `misfire data list`."""
    return {
        entry.name: replace(entry, files=_listed_files(entry.listing)) if entry.listing else entry
        for entry in _ENTRIES
    }


@functools.cache
def _listed_files(listing: str) -> tuple[DataFile, ...]:
    lines = (resources.files("misfire_train.data") / listing).read_text(encoding="utf-8").splitlines()
    return tuple(DataFile(path, checksum) for checksum, path in (line.split("  ", 1) for line in lines))


def find_entry(name: str) -> Entry:
    """Returns the entry of that name. Raises DatasetError with the names that exist."""
    known = entries()
    if name not in known:
        raise DatasetError(f"there is no data set {name!r}; there are {', '.join(known)}")
    return known[name]


def cache_root() -> Path:
    """Returns the folder into which `misfire data fetch` puts files by default."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "misfire" / "data"


def data_roots(root: Path | None = None) -> tuple[Path, ...]:
    """Returns the folders to search. A named folder (argument or MISFIRE_DATA) is the only one."""
    if root is not None:
        return (Path(root),)
    named = os.environ.get("MISFIRE_DATA")
    if named:
        return (Path(named),)
    return (cache_root(),)


def locate(file: DataFile, *, root: Path | None = None) -> Path | None:
    """Returns the file's path in the first folder that has it, or None. The content is not read."""
    candidates = (folder / file.path for folder in data_roots(root))
    return next((path for path in candidates if path.is_file()), None)


def open_file(file: DataFile, *, name: str, root: Path | None = None) -> Path:
    """Returns the path of a file whose checksum was just verified.

    Args:
        file: a file of the catalogue.
        name: of the data set, for messages.
        root: folder of the published sets; else MISFIRE_DATA, else the user's cache.

    Raises:
        DatasetError: the file is missing, or its content is not the published one.
    """
    path = locate(file, root=root)
    if path is None:
        places = " or ".join(str(folder) for folder in data_roots(root))
        how = f"run `misfire data fetch {name}`, or " if file.url else ""
        raise DatasetError(
            f"{name}: {file.path} is not in {places}; {how}name its folder with --data or MISFIRE_DATA"
        )
    if not _is_published(path, file):
        raise DatasetError(
            f"{name}: {path} is not the published file (sha256 differs); remove it and fetch it again"
        )
    return path


def state(entry: Entry, *, root: Path | None = None, verify: bool = False) -> State:
    """Returns whether all files of an entry are present, and with `verify` whether their checksums match."""
    for file in entry.files:
        path = locate(file, root=root)
        if path is None:
            return "missing"
        if verify and not _is_published(path, file):
            return "changed"
    return "present"


def _is_published(path: Path, file: DataFile) -> bool:
    # Imported here: `misfire data list` hashes nothing, and needs none of what a bundle needs.
    from misfire_runtime.bundle import sha256_file

    return sha256_file(path) == file.sha256


def digest_of(pairs: Iterable[tuple[str, str]]) -> str:
    """Returns the SHA-256 over (name, checksum) pairs, in the order of the names."""
    digest = hashlib.sha256()
    for name, checksum in sorted(pairs):
        # The line format of `sha256sum`, so that the digest can be computed outside Python.
        digest.update(f"{checksum}  {name}\n".encode())
    return digest.hexdigest()
