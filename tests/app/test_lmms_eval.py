"""The lmms-eval adapter against a stand-in of the interface that lmms-eval documents for model plug-ins."""

import sys
import types
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points

import numpy as np
import pytest

import mm
from mm.app import lmms_eval as adapter


@dataclass(frozen=True)
class ModelManifest:
    """What an entry point hands over."""

    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class CacheHook:
    def __init__(self):
        self.kept = []

    def add_partial(self, attribute, request, answer):
        self.kept.append((attribute, request, answer))


class Base(ABC):
    """The base class of models: documents by task, split and number."""

    is_simple = True

    def __init__(self):
        self.task_dict = {}
        self.cache_hook = CacheHook()

    @abstractmethod
    def generate_until(self, requests): ...

    @abstractmethod
    def loglikelihood(self, requests): ...

    @abstractmethod
    def generate_until_multi_round(self, requests): ...


@dataclass
class Instance:
    args: tuple


@pytest.fixture
def harness(monkeypatch):
    """`lmms_eval` as an importable package of the stand-ins."""
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models"):
        package = types.ModuleType(name)
        package.__path__ = []
        monkeypatch.setitem(sys.modules, name, package)
    for name, content in (("api.model", {"lmms": Base}), ("models.registry_v2", {"ModelManifest": ModelManifest})):
        module = types.ModuleType(f"lmms_eval.{name}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    adapter._classes.cache_clear()
    yield
    adapter._classes.cache_clear()


@pytest.fixture(scope="module", params=["llava_tiny", "lavi_tiny"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / request.param
    mm.create_model(request.param, width=32, depth=2).save_pretrained(path)
    return path


DOCUMENTS = [
    {
        "question": text,
        "picture": np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8),
        "answer": answer,
    }
    for number, (text, answer) in enumerate([("is it red?", "yes"), ("what is in row 3 col 5?", "seven")])
]
OPTIONS = {"max_new_tokens": 3, "temperature": 0, "until": ["\n\n"]}


def as_messages(document):
    content = [{"type": "image", "url": document["picture"]}, {"type": "text", "text": document["question"]}]
    return [{"role": "user", "content": content}]


def as_pictures(document):
    return [document["picture"]]


def made(path, kind):
    """A model as lmms-eval makes it: from the class path of the manifest, with the arguments of its command line."""
    class_path = getattr(adapter.manifest(), f"{kind}_class_path")
    module, name = class_path.rsplit(".", 1)
    cls = getattr(import_module(module), name)
    assert issubclass(cls, Base) and cls.is_simple == (kind == "simple")
    model = cls(pretrained=str(path), batch_size="2", max_batch_size=None, device="cpu")
    model.task_dict = {"toy": {"test": DOCUMENTS}}
    return model


def test_the_installed_package_registers_the_manifest(harness):
    (entry,) = [entry for entry in entry_points(group="lmms_eval.models") if entry.name == "mm"]
    found = entry.load()()
    assert found.model_id == "mm" and found.chat_class_path and found.simple_class_path


def test_chat_and_simple_tasks_give_the_answers_of_the_model(harness, folder):
    model = mm.load(folder)
    expected = [model.ask(document["picture"], document["question"], max_new_tokens=3) for document in DOCUMENTS]
    chat, simple = made(folder, "chat"), made(folder, "simple")
    assert chat.batch_size == 2
    short = [Instance((as_messages, dict(OPTIONS), number, "toy", "test")) for number in (1, 0)]
    long = [Instance(("shown text", *instance.args)) for instance in short]
    assert chat.generate_until(short) == chat.generate_until(long) == expected[::-1]
    older = [
        Instance((document["question"], dict(OPTIONS), as_pictures, number, "toy", "test"))
        for number, document in enumerate(DOCUMENTS)
    ]
    assert simple.generate_until(older) == expected
    kept = [(DOCUMENTS[number]["question"], OPTIONS) for number in (0, 1)]
    assert simple.cache_hook.kept == [("generate_until", *pair) for pair in zip(kept, expected, strict=True)]


def test_scores_prefer_the_answer_that_the_model_gives(harness, folder):
    simple = made(folder, "simple")
    best = mm.load(folder).ask(DOCUMENTS[0]["picture"], DOCUMENTS[0]["question"], max_new_tokens=1)
    given = Instance((DOCUMENTS[0]["question"], best, as_pictures, 0, "toy", "test"))
    read = Instance((DOCUMENTS[0]["question"], lambda document: document["answer"], as_pictures, 0, "toy", "test"))
    (high, greedy), (low, _) = simple.loglikelihood([given, read])
    assert greedy and low < high < 0


def test_several_processes_and_rounds_are_refused(harness, folder, monkeypatch):
    with pytest.raises(NotImplementedError, match="several rounds"):
        made(folder, "chat").generate_until_multi_round([])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="runs in one process"):
        made(folder, "chat")


def test_an_unknown_model_argument_is_an_error(harness, folder):
    with pytest.raises(TypeError, match="max_frames"):
        adapter.Chat(pretrained=str(folder), max_frames=8)


def test_without_lmms_eval_the_error_says_where_to_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    adapter._classes.cache_clear()
    for use in (adapter.manifest, lambda: adapter.Chat):
        with pytest.raises(ImportError, match=r"needs lmms-eval .* see docs/lmms_eval.md"):
            use()
