import pickle
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from mm.catalog import DATA
from mm.data.folder_module import FolderConfig, FolderData
from mm.data.frames import ClipConfig
from mm.data.module import ProceduralConfig, ProceduralData, ProceduralStream
from mm.data.split import Split, split_of
from mm.data.tasks import TASKS, TaskConfig, make_sample, task_of

SMALL = TaskConfig(clips=ClipConfig(size=8))


def procedural(**options):
    return ProceduralConfig(tasks={"clips": 1.0}, content=SMALL, batch_size=3, **options)


def seeds_of(batch):
    return [sample.meta["seed"] for sample in batch]


def flat(lists):
    return list(chain.from_iterable(lists))


def only(key):
    """Batches of nothing but one number per sample."""
    return lambda **_: lambda samples: {"numbers": torch.tensor([sample.meta[key] for sample in samples])}


class Recorder(LightningModule):
    """Trains one number and writes down which samples it saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validated = [], []

    def training_step(self, batch, _):
        self.seen.append(batch["numbers"].tolist())
        return self.weight**2

    def validation_step(self, batch, _):
        self.validated += batch["numbers"].tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def train(data, steps, folder, *, key="seed", resume=None, every=None):
    module = Recorder()
    data.collate_for = only(key)
    saving = [ModelCheckpoint(folder, filename="{step}", every_n_train_steps=every, save_top_k=-1)] if every else []
    trainer = Trainer(
        max_steps=steps,
        callbacks=saving,
        logger=False,
        accelerator="cpu",
        enable_checkpointing=bool(every),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=False if resume else None)
    return module


# --- mixtures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_is_pure_and_names_itself(name):
    seed = Split("test").seed(6)
    one, other = (make_sample(seed, {name: 1.0}, SMALL) for _ in range(2))
    assert one.meta["task"] == name and (one.question, one.answer, one.text) == (
        other.question,
        other.answer,
        other.text,
    )
    assert all((a == b).all() for a, b in zip(one.images, other.images, strict=True))
    assert one.question or one.text


def test_weights_decide_how_often_a_task_comes():
    weights = {"boards": 3.0, "scenes": 1.0, "text": 0.0}
    names = [task_of(seed, weights) for seed in range(2000)]
    assert 0.7 < names.count("boards") / 2000 < 0.8 and names.count("text") == 0
    assert all(names[i] == names[i + 1] for i in range(0, 2000, 2))


@pytest.mark.parametrize("weights", [{}, {"chess": 1.0}, {"boards": -1.0, "scenes": 2.0}, {"boards": 0.0}])
def test_wrong_weights_are_refused(weights):
    with pytest.raises(ValueError, match=r"unknown task chess|weights of tasks"):
        ProceduralConfig(tasks=weights)


def test_questions_of_irrelevant_pictures_are_answered_by_their_words():
    for seed in range(30):
        sample = make_sample(seed, {"irrelevant": 1.0})
        *facts, asked = sample.question.removesuffix("?").split(". ")
        (answer,) = [fact.split(" is ")[1] for fact in facts if fact.startswith(asked)]
        assert sample.answer == answer and len(sample.images) == 1


# --- procedural stream -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_consecutive_seeds_for_any_number_of_workers(workers):
    data = ProceduralData(procedural(workers=workers, train_batches=5))
    loader = data.train_dataloader()
    assert len(loader) == 5
    assert [seeds_of(batch) for batch in loader] == [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(5)]


def test_processes_share_the_seeds_without_overlap():
    streams = [iter(ProceduralStream(procedural(), list, rank=rank, world=2)) for rank in range(2)]
    seen = [seeds_of(next(stream)[0]) for _ in range(3) for stream in streams]
    assert flat(seen) == list(range(18))


def test_runs_with_other_seeds_see_other_samples_and_the_same_test_set():
    one, other = (ProceduralData(procedural(seed=seed, test_samples=4)) for seed in (0, 1))
    assert one.sample("train", 0).meta["seed"] != other.sample("train", 0).meta["seed"]
    first, second = ([seeds_of(batch) for batch in data.test_dataloader()] for data in (one, other))
    assert first == second == [[Split("test").seed(i) for i in range(3)], [Split("test").seed(3)]]


@pytest.mark.parametrize("workers", [0, 2])
def test_held_out_sets_are_complete_and_held_out(workers):
    data = ProceduralData(procedural(workers=workers, validation_samples=7, test_samples=5))
    validation = flat(map(seeds_of, data.val_dataloader()))
    test = flat(map(seeds_of, data.test_dataloader()))
    assert sorted(validation) == [Split("validation").seed(i) for i in range(7)]
    assert sorted(test) == [Split("test").seed(i) for i in range(5)]
    assert {split_of(seed) for seed in validation + test} == {"validation", "test"}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_goes_on_with_the_next_seeds(workers, tmp_path):
    config = procedural(workers=workers, train_batches=4, validation_samples=2)
    whole = train(ProceduralData(config), 10, tmp_path / "a")
    assert whole.seen == [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(10)]
    begun = train(ProceduralData(config), 6, tmp_path / "b", every=3)
    for step in (3, 6):  # both stand in the middle of an epoch
        resumed = train(ProceduralData(config), 10, tmp_path / "c", resume=tmp_path / f"b/step={step}.ckpt")
        assert begun.seen[:step] + resumed.seen == whole.seen
    assert set(resumed.validated) == {Split("validation").seed(0), Split("validation").seed(1)}


def test_a_resumed_run_may_change_its_batch_size(tmp_path):
    train(ProceduralData(procedural(train_batches=4)), 2, tmp_path, every=2)
    config = ProceduralConfig(tasks={"clips": 1.0}, content=SMALL, batch_size=5)
    resumed = train(ProceduralData(config), 3, tmp_path, resume=tmp_path / "step=2.ckpt")
    assert resumed.seen == [[6, 7, 8, 9, 10]]


def test_the_position_follows_what_was_used_not_what_was_fetched(records):
    loader = FolderData(recorded(records, shuffle=0)).train_dataloader()
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    for read in (2, 4, 6):
        loader.confirm()
        assert loader.stream.done == {0: (0, read)}


def test_confirming_more_than_was_fetched_is_an_error():
    loader = ProceduralData(procedural()).train_dataloader()
    with pytest.raises(RuntimeError, match="did not yield"):
        loader.confirm()


def test_the_processor_of_the_model_is_found():
    def processor(images, texts, answers, padding_side):
        return {"texts": texts, "answers": answers, "padding_side": padding_side, "pictures": [len(i) for i in images]}

    data = ProceduralData(procedural(test_samples=3))
    module = SimpleNamespace(model=SimpleNamespace(processor=processor))
    data.trainer = SimpleNamespace(lightning_module=module, global_rank=0, world_size=1)
    batch = next(iter(data.train_dataloader()))
    assert batch["texts"] == ["left or right?"] * 3 and batch["padding_side"] == "right"
    assert batch["pictures"] == [4, 4, 4] and set(batch["answers"]) <= {"left", "right"}
    asked = next(iter(data.predict_dataloader()))
    assert asked["answers"] is None and asked["padding_side"] == "left"


def test_a_trainer_without_any_processor_is_told(tmp_path):
    data = ProceduralData(procedural())
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(model=None), global_rank=0, world_size=1)
    with pytest.raises(ValueError, match="ProceduralData has no processor"):
        data.train_dataloader()


def test_loaders_can_be_sent_to_fresh_processes(records):
    module = FolderData(recorded(records, test=str(records)))
    loaders = [ProceduralData(procedural()).test_dataloader(), module.test_dataloader(), module.train_dataloader()]
    for loader in loaders:
        again = pickle.loads(pickle.dumps(loader.dataset))
        first = next(iter(again))
        assert len(first[0] if isinstance(first, tuple) else first) in (2, 3)


def test_the_position_of_all_processes_is_saved(records, monkeypatch):
    def all_gather_object(everywhere, mine):
        everywhere[:] = [mine, {1: (0, 6)}]

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.all_gather_object", all_gather_object)
    data = FolderData(recorded(records))
    data.trainer = SimpleNamespace(global_rank=0, world_size=2, lightning_module=None)
    data.processor = lambda *_, **__: {}
    data.train_dataloader().stream.advance((0, 0, 4))
    assert data.state_dict() == {"done": {"0": [0, 4], "1": [0, 6]}, "parts": 2}


def test_short_names():
    assert DATA.get("procedural") is ProceduralData and DATA.get("folder") is FolderData


@pytest.mark.parametrize("wrong", [{"seed": 256}, {"batch_size": 0}, {"workers": -1}, {"test_samples": 0}])
def test_wrong_procedural_config_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ProceduralConfig(**wrong)


# --- recorded data -----------------------------------------------------------------------------------------------


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "chat.jsonl"
    line = '{{"messages": [{{"role": "user", "content": "{0}?"}}, {{"role": "assistant", "content": "a{0}"}}]}}'
    path.write_text("\n".join(line.format(i) for i in range(10)))
    return path


def recorded(path, **options):
    return FolderConfig(**{"format": "messages", "train": str(path), "batch_size": 2, "train_batches": 5, **options})


def indices(loader, key="index"):
    return [[sample.meta[key] for sample in batch] for batch in loader]


def test_without_shuffling_the_order_of_the_file_stands(records):
    loader = FolderData(recorded(records, shuffle=0)).train_dataloader()
    assert indices(loader) == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]


@pytest.mark.parametrize("window", [4, 100])
def test_shuffled_passes_are_complete_seeded_and_different(records, window):
    orders = []
    for seed in (0, 0, 1):
        loader = FolderData(recorded(records, shuffle=window, seed=seed, train_batches=10)).train_dataloader()
        seen = flat(indices(loader))
        assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(1, 11)) and seen[:10] != seen[10:]
        orders.append(seen)
    assert orders[0] == orders[1] != orders[2]


def test_workers_divide_the_records(records):
    loader = FolderData(recorded(records, shuffle=0, workers=2, batch_size=1, train_batches=10)).train_dataloader()
    assert sorted(flat(indices(loader))) == list(range(1, 11))


@pytest.mark.parametrize("workers, bad", [(0, False), (2, False), (0, True)])
def test_a_killed_run_goes_on_with_the_records_not_yet_seen(records, tmp_path, workers, bad):
    if bad:
        records.write_text(records.read_text().replace("4?", '4"'))
    config = recorded(records, shuffle=4, workers=workers, train_batches=4, on_error="count")
    whole = train(FolderData(config), 9, tmp_path / "a", key="index")
    begun = train(FolderData(config), 6, tmp_path / "b", key="index", every=6)
    resumed = train(FolderData(config), 9, tmp_path / "c", key="index", resume=tmp_path / "b/step=6.ckpt")
    assert begun.seen == whole.seen[:6] and resumed.seen == whole.seen[6:]


def test_resuming_with_other_workers_is_refused(records):
    state = FolderData(recorded(records)).state_dict()
    with pytest.raises(ValueError, match="divided into 1 parts"):
        FolderData(recorded(records, workers=2)).load_state_dict(state)


def test_data_without_a_readable_record_ends_with_an_error(records):
    records.write_text("{\n{\n")
    with pytest.raises(ValueError, match="no readable record"):
        next(iter(FolderData(recorded(records, on_error="count")).train_dataloader()))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"format": "parquet"}, "format must be one of"),
        ({"format": "folder", "images": "x"}, "images is for the formats"),
        ({"columns": {"question": "q"}}, "columns is for the formats datasets"),
        ({"shuffle": -1}, "shuffle must be"),
    ],
)
def test_wrong_folder_config_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        FolderConfig(**wrong)


def test_a_split_that_is_not_named_is_refused(records):
    with pytest.raises(ValueError, match="no test data was named"):
        FolderData(recorded(records)).test_dataloader()
