import numpy as np
import pytest

from mm.data.collate import collate
from mm.data.contact_sheet import contact_sheet, shortened
from mm.data.sample import VisualSample
from mm.data.tasks import TASKS, make_sample
from mm.data.tokenizer import tiny_tokenizer
from mm.vision import ImagePreprocessing, ImageProcessor
from mm.vlm.config import PromptConfig
from mm.vlm.processor import VLMProcessor

PICTURE = np.full((4, 6, 3), 200, np.uint8)


def recording(images, texts, answers=None, *, padding_side="left"):
    return {"images": images, "texts": texts, "answers": answers, "padding_side": padding_side}


def test_questions_and_answers_reach_the_processor():
    batch = collate([VisualSample([PICTURE], "what?", "grey"), VisualSample([], "why?", "so")], recording)
    assert batch["texts"] == ["what?", "why?"] and batch["answers"] == ["grey", "so"]
    assert [len(images) for images in batch["images"]] == [1, 0] and batch["padding_side"] == "right"


def test_captions_and_documents_are_learned_whole():
    samples = [VisualSample([PICTURE], "", "", "a grey picture"), VisualSample([], "", "", "words")]
    batch = collate(samples, recording)
    assert batch["texts"] == ["", ""] and batch["answers"] == ["a grey picture", "words"]


def test_earlier_turns_and_system_text_become_messages():
    sample = VisualSample([PICTURE], "b?", "2", meta={"history": [("a?", "1")], "system": "be kind"})
    (messages,) = collate([sample], recording)["texts"]
    assert [(message["role"], message["content"]) for message in messages] == [
        ("system", "be kind"),
        ("user", "a?"),
        ("assistant", "1"),
        ("user", "b?"),
    ]


def test_prompts_without_answers():
    batch = collate([VisualSample([], "a?", "b")], recording, answers=False, padding_side="left")
    assert batch["answers"] is None and batch["padding_side"] == "left"


def test_nothing_to_learn_and_no_samples_are_refused():
    with pytest.raises(ValueError, match="nothing to learn"):
        collate([VisualSample([PICTURE], "what?", "", "a caption is no answer")], recording)
    with pytest.raises(ValueError, match="at least one sample"):
        collate([], recording)


@pytest.mark.parametrize("image", [PICTURE.astype(float), PICTURE[..., 0], np.zeros((2, 2, 4), np.uint8)])
def test_a_sample_refuses_wrong_pictures(image):
    with pytest.raises(ValueError, match="image 1 of a sample must be"):
        VisualSample([PICTURE, image], "", "")


def test_contact_sheet_shows_every_picture_and_its_words():
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    samples = [VisualSample([np.full((8, 8, 3), c, np.uint8)] * 2, "which colour?", "that") for c in colours]
    sheet = contact_sheet(samples, columns=2, height=40)
    pixels = np.asarray(sheet)
    for colour in colours:
        assert (pixels == colour).all(-1).sum() == 2 * 40 * 40
    dark = (pixels.max(-1) < 120).sum()
    assert dark > 50
    with_model = np.asarray(contact_sheet(samples, columns=2, height=40, answers=["a", "b", "c"]))
    assert (with_model != pixels).any()
    assert contact_sheet([VisualSample([], "", "", "only words")]).size[0] > 0


def test_long_text_is_shortened_visibly():
    assert shortened("word " * 100, 100, 2)[-1].endswith("...") and len(shortened("word " * 100, 100, 2)) == 2
    assert shortened("two words", 100, 2) == ["two words"]


def test_wrong_contact_sheets_are_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        contact_sheet([])
    with pytest.raises(ValueError, match="1 samples but 2 answers"):
        contact_sheet([VisualSample([PICTURE], "a", "b")], answers=["a", "b"])


@pytest.fixture(scope="module")
def processor():
    images = ImageProcessor(ImagePreprocessing(size=32))
    return VLMProcessor(tiny_tokenizer(), images, tokens_per_picture=4, prompt=PromptConfig(format="chat"))


@pytest.mark.parametrize("names", [list(TASKS), ["text"]])
def test_the_processor_of_the_models_reads_every_task(processor, names):
    tokenizer = processor.tokenizer
    samples = [make_sample(seed, {name: 1.0}) for seed, name in enumerate(names)]
    batch = collate(samples, processor)
    pictures = [len(sample.images) for sample in samples]
    assert batch["visual_counts"].tolist() == pictures and len(batch["pixel_values"]) == sum(pictures)
    assert ((batch["input_ids"] == tokenizer.image_token_id).sum(1) == 4 * batch["visual_counts"]).all()
    assert not (batch["input_ids"] == tokenizer.unk_token_id).any()
    for sample, ids, labels in zip(samples, batch["input_ids"], batch["labels"], strict=True):
        learned = labels[labels != -100]
        expected = tokenizer(sample.answer or sample.text, add_special_tokens=False).input_ids
        assert learned.tolist() == [*expected, tokenizer.eos_token_id]
        asked = tokenizer.decode(ids[labels == -100], skip_special_tokens=True)
        assert asked == (f"question: {sample.question} answer:" if sample.question else "")


def test_the_processor_of_the_models_reads_conversations(processor):
    sample = VisualSample([PICTURE], "what colour?", "red", meta={"history": [("what shape?", "circle")]})
    batch = collate([sample], processor)
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    text = "question: what shape? answer: circle <eos> question: what colour? answer: red <eos>"
    assert processor.tokenizer.decode(ids) == "<bos> " + "<image> " * 4 + text
    assert processor.tokenizer.decode(labels[labels != -100]) == "circle <eos> red <eos>"
