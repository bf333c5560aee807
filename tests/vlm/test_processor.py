"""Prompts, placeholders, labels and padding: what the model reads, and every mismatch by the sample's name."""

import numpy as np
import pytest
import torch
from PIL import Image

from mm.vision import ImagePreprocessing, ImageProcessor
from mm.vlm import PromptConfig, VLMProcessor

LLAVA = PromptConfig(template="USER : {prompt} ASSISTANT :")
CHAT = (
    "{% for m in messages %}{{ m['role'] }} : {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{% if m['role'] == 'assistant' %}</s>{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


@pytest.fixture
def make(word_tokenizer):
    def make(tokens=3, prompt=LLAVA, chat=None, **options):
        tokenizer = word_tokenizer("<image>")
        tokenizer.chat_template = chat
        images = ImageProcessor(ImagePreprocessing(size=16))
        return VLMProcessor(tokenizer, images, tokens_per_picture=tokens, prompt=prompt, **options)

    return make


def words(processor, row):
    return " ".join(processor.tokenizer.convert_ids_to_tokens(row))


def test_one_question(make, picture):
    processor = make()
    batch = processor(picture(0), "what is red ?")
    expected = "<s> USER : <image> <image> <image> what is red ? ASSISTANT :"
    assert words(processor, batch["input_ids"][0]) == expected
    assert batch["attention_mask"].tolist() == [[1] * 12] and batch["visual_counts"].tolist() == [1]
    assert batch["pixel_values"].shape == (1, 3, 16, 16) and "labels" not in batch


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_labels_line_up(make, picture, side):
    processor = make()
    images = [[picture(0), picture(1)], None, picture(2)]
    batch = processor(images, ["what ?", "is red ?", "row <image> one ?"], ["five", "six .", "a"], padding_side=side)
    assert batch["visual_counts"].tolist() == [2, 0, 1] and len(batch["pixel_values"]) == 3
    for index, answer in enumerate(["five </s>", "six . </s>", "a </s>"]):
        keep = batch["attention_mask"][index].bool()
        ids, labels = batch["input_ids"][index], batch["labels"][index]
        learned = labels != -100
        assert torch.equal(ids[learned], labels[learned]) and words(processor, ids[learned]) == answer
        assert not learned[~keep].any() and (ids[~keep] == processor.pad_token_id).all()
        first = int(keep.long().argmax())
        assert keep[first : first + int(keep.sum())].all() and (first == 0 or side == "left")
    row = batch["input_ids"][2][batch["attention_mask"][2].bool()]
    assert words(processor, row) == "<s> USER : row <image> <image> <image> one ? ASSISTANT : a </s>"


def test_training_prompt_is_the_asking_prompt(make, picture):
    for chat in (None, CHAT):
        processor = make(chat=chat, prompt=PromptConfig(format="chat") if chat else LLAVA)
        asked = processor(picture(0), "what is red ?")["input_ids"][0]
        trained = processor(picture(0), "what is red ?", "five")
        assert torch.equal(trained["input_ids"][0, : len(asked)], asked)
        assert (trained["labels"][0, : len(asked)] == -100).all() and (trained["labels"][0, len(asked) :] != -100).all()


def test_conversation_learns_every_answer(make, picture):
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what ?"}]},
        {"role": "assistant", "content": "five"},
        {"role": "user", "content": "is red ?"},
        {"role": "assistant", "content": "six"},
    ]
    plain = make()
    batch = plain(picture(0), messages)
    learned = batch["labels"][0][batch["labels"][0] != -100]
    assert words(plain, learned) == "five </s> six </s>"
    chat = make(chat=CHAT, prompt=PromptConfig(format="chat"))
    batch = chat(picture(0), messages)
    assert words(chat, batch["labels"][0][batch["labels"][0] != -100]) == "five </s> six </s>"
    assert batch["input_ids"].eq(chat.image_token_id).sum() == 3


def test_string_only_chat_template_gets_strings(make, picture):
    template = "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' ' }}{% endfor %}"
    processor = make(chat=template, prompt=PromptConfig(format="chat"))
    ids = processor(picture(0), "<image> what ?")["input_ids"][0]
    assert words(processor, ids) == "<unk> : <image> <image> <image> what ?"


def test_caption_and_plain_text_are_learned_without_a_template(make, picture):
    processor = make()
    batch = processor([picture(0), None], ["", ""], ["a red row .", "the row ."])
    assert words(processor, batch["input_ids"][0]) == "<s> <image> <image> <image> a red row . </s>"
    assert words(processor, batch["labels"][1][batch["labels"][1] != -100]) == "the row . </s>"
    assert words(processor, batch["input_ids"][1][-5:]) == "<s> the row . </s>"


def test_raw_prompt_is_taken_as_it_is(make, picture):
    processor = make()
    batch = processor(picture(0), "<s> red <image> is", raw=True)
    assert words(processor, batch["input_ids"][0]) == "<s> red <image> <image> <image> is"


def test_frames_of_a_clip_are_several_pictures(make, picture):
    batch = make()(np.stack([picture(i) for i in range(4)]), "what ?")
    assert batch["visual_counts"].tolist() == [4] and batch["input_ids"].eq(make().image_token_id).sum() == 12
    again = make()([picture(i) for i in range(4)], "what ?")
    assert torch.equal(batch["pixel_values"], again["pixel_values"])


def test_tiles_belong_to_their_placeholder(make, picture):
    processor = make(grids=((1, 1), (2, 2)))
    batch = processor([[picture(0, (32, 32)), picture(1, (16, 16))]], ["<image> red <image>"])
    assert batch["visual_counts"].tolist() == [6]  # thumbnail + 4 tiles, and one small picture
    row = words(processor, batch["input_ids"][0]).split()
    assert row.index("red") == 3 + 15 and row.count("<image>") == 18
    assert torch.equal(batch["pixel_values"][1], processor.image_processor(picture(0, (32, 32))[:16, :16])[0])


def test_no_tokens_per_picture_removes_the_placeholder(make, picture):
    processor = make(tokens=0)
    batch = processor(picture(0), "<image> what ?")
    assert words(processor, batch["input_ids"][0]) == "<s> USER : what ? ASSISTANT :"
    assert batch["visual_counts"].tolist() == [1]


def test_image_token_is_added_to_a_copy(word_tokenizer, picture):
    tokenizer = word_tokenizer()
    before = len(tokenizer)
    processor = VLMProcessor(tokenizer, ImageProcessor(ImagePreprocessing(size=16)), tokens_per_picture=2)
    assert len(tokenizer) == before and processor.image_token_id == before
    assert processor(picture(0), "what ?")["input_ids"].eq(before).sum() == 2


def test_template_that_drops_the_placeholder_is_found_out(make, picture):
    template = "{% for m in messages %}{{ m['content'] | replace('<image>', '') }}{% endfor %}"
    processor = make(chat=template, prompt=PromptConfig(format="chat"))
    with pytest.raises(ValueError, match="sample 0: the rendered prompt has 0 <image> tokens for 1 pictures"):
        processor(picture(0), "what ?")


def test_template_that_rewrites_the_past_is_refused(make):
    template = "{{ messages | length }} {% for m in messages %}{{ m['content'] }} {% endfor %}"
    processor = make(chat=template, prompt=PromptConfig(format="chat"))
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        processor(None, "what ?", "five")


@pytest.mark.parametrize(
    ("images", "text", "answers", "message"),
    [
        (
            [None, [0, 1]],
            ["what ?", "<image> is ?"],
            None,
            "sample 1: 1 <image> placeholders in the text, but 2",
        ),
        ([None, 0], ["<image> what ?", "is ?"], None, "sample 0: 1 <image> placeholders in the text, but 0 pictures"),
        (None, "   ", None, "sample 0: the prompt is empty"),
        ([0, 0], ["what ?", "<image>"], None, "sample 1: the prompt is empty"),
        ([0], ["what ?", "is ?"], None, "2 texts but 1 entries of images"),
        (None, ["what ?", "is ?"], ["five"], "2 texts but 1 answers"),
        (None, "what ?", "a <image>", "sample 0: an answer contains the image placeholder"),
        (None, [], None, "text is an empty list"),
        (None, [{"role": "assistant", "content": "five"}], None, "sample 0: message 0 has role 'assistant'"),
        (None, [{"role": "user", "content": [{"type": "audio"}]}], None, "part of type 'audio'"),
        (None, "what is in row one two three ?", None, "sample 0: 13 tokens .0 of them visual., .* has 12 positions"),
        (
            0,
            "what is the one ?",
            None,
            r"sample 0: 13 tokens \(3 of them visual\), .* has 12 positions",
        ),
    ],
)
def test_mistakes_are_named(make, picture, images, text, answers, message):
    def pictures(entry):
        return [pictures(e) for e in entry] if isinstance(entry, list) else None if entry is None else picture(entry)

    with pytest.raises(ValueError, match=message):
        make(max_length=12)(pictures(images), text, answers)


def test_bad_picture_names_sample_or_file(make, picture, tmp_path):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"cut\.png"):
        make()([picture(0), tmp_path / "cut.png"], ["what ?", "is ?"])
    with pytest.raises(ValueError, match="sample 1, picture 1: "):
        make()([picture(0), [picture(0), Image.new("F", (2, 2))]], ["what ?", "is ?"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "USER:"}, "must contain {prompt}"),
        ({"format": "jinja"}, "'template' or 'chat'"),
        ({"format": "chat", "system": "be kind"}, "no effect with format='chat'"),
    ],
)
def test_bad_prompt_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        PromptConfig(**settings)


def test_chat_without_a_template_says_what_to_do(make):
    with pytest.raises(ValueError, match="no chat template; use format='template'"):
        make(prompt=PromptConfig(format="chat"))(None, "what ?")
